//! One TCP connection: HTTP/1.1 with deadlines on both directions.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::app::App;

/// Bytes that are buffered per connection and direction at most; longer headers are refused.
const BUFFER: usize = 64 << 10;

/// For a turned away client to read why.
const LINGER: Duration = Duration::from_secs(1);

/// Serves a connection until it closes, breaks a deadline, or, once the server is closing, has finished its request.
pub async fn serve(app: Arc<App>, router: Router, stream: TcpStream) {
    let mut closing = app.closing.subscribe();
    // Small packets matter: every token is one.
    let _ = stream.set_nodelay(true);
    // A connection that says nothing costs no buffers. (Every new stream says that it is `readable`.)
    let mut byte = [0];
    tokio::select! {
        first = timeout(app.config.idle_timeout, stream.peek(&mut byte)) => {
            if !matches!(first, Ok(Ok(1..))) {
                return;
            }
        }
        _ = closing.wait_for(|c| *c) => return,
    }
    let stream = Arc::new(stream);
    let peer = Peer(Arc::downgrade(&stream));
    let requests = Arc::new(AtomicU64::new(0));
    let io = TimedStream {
        stream,
        timeout: app.config.write_timeout,
        stalled: None,
        closing: closing.clone(),
        requests: requests.clone(),
        idle_timeout: app.config.idle_timeout,
        header_timeout: app.config.header_timeout,
        head: None,
    };
    let service = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        requests.fetch_add(1, Relaxed);
        let (answer, requests) = (service.call(request), requests.clone());
        async move { answer.await.map(|response| response.map(|body| Answer { body, _running: requests })) }
    });
    let connection = http1::Builder::new()
        .max_buf_size(BUFFER)
        // The end of what a client sends is not its end: see `Peer`.
        .half_close(true)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection);
    // Errors are the client's: it left, was too slow, or sent what is not HTTP (answered by hyper).
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = closing.wait_for(|c| *c) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// The client of a request, to be asked whether it still waits.
#[derive(Clone, Debug, Default)]
pub struct Peer(Weak<TcpStream>);

impl Peer {
    /// Completes when the client has ended its side: it has left, or will send nothing more but still read. Which of
    /// the two, only sending it something tells.
    pub async fn ended(self) {
        if let Some(stream) = self.0.upgrade()
            && matches!(stream.peek(&mut [0]).await, Ok(1..))
        {
            // It is sending its next request already.
            std::future::pending().await
        }
    }
}

/// Answers a connection that is one too many.
pub async fn turn_away(mut stream: TcpStream) {
    let body =
        r#"{"error":{"message":"too many connections","type":"service_unavailable_error","param":null,"code":null}}"#;
    let text = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: \
         close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    // Closing with something unread would take the answer back, so what comes is read for a moment.
    let answer = async {
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await?;
        let mut scrap = [0; 1024];
        while stream.read(&mut scrap).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = timeout(LINGER, answer).await;
}

/// An answer's body. While there is one, its connection is not idle.
struct Answer {
    body: axum::body::Body,
    /// Held by every request that is being answered.
    _running: Arc<AtomicU64>,
}

impl Body for Answer {
    type Data = axum::body::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream whose peer must take something within `timeout` whenever there is something to send, and between two answers
/// begin a request and bring its headers to their end in time.
struct TimedStream {
    stream: Arc<TcpStream>,
    timeout: Duration,
    /// Runs while a write waits for the peer.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Once set, nothing more is read: what is half sent must not hold up the end.
    closing: watch::Receiver<bool>,
    /// Requests so far; see [`Answer`].
    requests: Arc<AtomicU64>,
    idle_timeout: Duration,
    header_timeout: Duration,
    head: Option<Head>,
}

/// The next request's headers, which are waited for.
struct Head {
    /// Requests before it.
    requests: u64,
    begun: bool,
    deadline: Pin<Box<Sleep>>,
}

impl TimedStream {
    /// The head that is waited for; `None` while a request is being answered.
    fn head(&mut self) -> Option<&mut Head> {
        /// This stream, and the service that counts.
        const HOLDERS: usize = 2;
        if Arc::strong_count(&self.requests) > HOLDERS {
            self.head = None;
            return None;
        }
        let requests = self.requests.load(Relaxed);
        if self.head.as_ref().is_none_or(|head| head.requests != requests) {
            self.head = Some(Head { requests, begun: false, deadline: Box::pin(sleep(self.idle_timeout)) });
        }
        self.head.as_mut()
    }

    fn poll_more(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_read_buf(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(drop)),
            }
        }
    }

    fn poll_try(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match write(&self.stream) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn timed<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.stalled = None;
            return poll;
        }
        let timeout = self.timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(timeout)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => {
                stalled.as_mut().reset(Instant::now());
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for TimedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if *self.closing.borrow() {
            return Poll::Ready(Ok(()));
        }
        let read = self.poll_more(cx, buf);
        let header_timeout = self.header_timeout;
        let Some(head) = self.head() else { return read };
        if read.is_pending() {
            return head.deadline.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()));
        }
        if !head.begun {
            head.begun = true;
            head.deadline.as_mut().reset(Instant::now() + header_timeout);
        }
        read
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = self.poll_try(cx, |stream| stream.try_write(buf));
        self.timed(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = self.poll_try(cx, |stream| stream.try_write_vectored(bufs));
        self.timed(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Left to the drop that follows: the connection is the only lasting holder of the socket.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
