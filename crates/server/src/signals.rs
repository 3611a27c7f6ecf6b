use std::process;

/// Completes at the first SIGINT or SIGTERM; a second one ends the process at once (exit code 130).
///
/// Signals are caught from the call on, not from the first poll: one that comes before the future is awaited still ends
/// the process in good order. Must be called inside a tokio runtime.
pub fn shutdown_signal() -> impl Future<Output = ()> + Send + 'static {
    let mut signals = Signals::install();
    async move {
        if !signals.next().await {
            // Without handlers the default action of the signals ends the process, which is what they ask for.
            return std::future::pending().await;
        }
        tokio::spawn(async move {
            if signals.next().await {
                process::exit(130);
            }
        });
    }
}

#[cfg(unix)]
struct Signals(Option<[tokio::signal::unix::Signal; 2]>);

#[cfg(unix)]
impl Signals {
    fn install() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        let both = signal(SignalKind::interrupt()).and_then(|i| Ok([i, signal(SignalKind::terminate())?]));
        Signals(both.ok())
    }

    /// False if there are no handlers.
    async fn next(&mut self) -> bool {
        let Some([interrupt, terminate]) = &mut self.0 else { return false };
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        true
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn install() -> Self {
        Signals
    }

    async fn next(&mut self) -> bool {
        tokio::signal::ctrl_c().await.is_ok()
    }
}
