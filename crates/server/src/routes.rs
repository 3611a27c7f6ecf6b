//! Every path that is served, in one table, and what happens to each request before and after its handler.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use axum::{Json, RequestExt, Router};
use serde_json::{Value, json};

use crate::api::error::ErrorCode;
use crate::api::generate::{Job, answer};
use crate::api::params::Bounds;
use crate::api::{ApiError, about, chat, completions, explain, tokens};
use crate::app::{App, Caller, Serving};
use crate::auth::{Tenant, presented};
use crate::cors;
use crate::limits::read_body;
use crate::log::RequestLine;
use crate::metrics::Scrape;
use crate::page::page;

const REQUEST_ID: &str = "x-request-id";

type Answer = Pin<Box<dyn Future<Output = Result<Response, ApiError>> + Send>>;

/// Who may use a path when keys are set. Without keys everybody may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Everyone,
    /// Who has a key.
    Tenants,
    /// Who has the key named by `ServerConfig::metrics_key`.
    Monitor,
}

/// A served path.
pub struct Route {
    pub method: (&'static str, MethodFilter),
    pub path: &'static str,
    pub access: Access,
    /// Not worth a log line each time.
    quiet: bool,
    handler: fn(Arc<App>, Request) -> Answer,
}

/// The router is made of this table alone, so a test that walks it meets every path.
pub const ROUTES: &[Route] = &[
    route(POST, "/v1/chat/completions", |app, request| Box::pin(generate(app, request, chat::job))),
    route(POST, "/v1/completions", |app, request| Box::pin(generate(app, request, completions::job))),
    route(POST, "/tokenize", |app, request| Box::pin(convert(app, request, tokens::tokenize))),
    route(POST, "/detokenize", |app, request| Box::pin(convert(app, request, tokens::detokenize))),
    route(POST, "/v1/kvist/explain", |app, request| Box::pin(explained(app, request))),
    route(POST, "/apply-template", |app, request| Box::pin(convert(app, request, tokens::apply_template))),
    route(GET, "/tokenizer_info", |app, _| Box::pin(async move { told(about::tokenizer_info(&*app.serving()?)) })),
    route(GET, "/props", |app, _| Box::pin(async move { told(about::props(&*app.serving()?)) })),
    route(GET, "/version", |_, _| Box::pin(async move { told(about::version()) })),
    route(GET, "/v1/models", |app, _| Box::pin(async move { models(&app) })),
    route(GET, "/v1/models/{*id}", |app, request| Box::pin(one_model(app, request))),
    Route {
        quiet: true,
        access: Access::Monitor,
        ..route(GET, "/metrics", |app, _| Box::pin(async move { metrics(&app) }))
    },
    Route {
        quiet: true,
        access: Access::Everyone,
        ..route(GET, "/health", |app, _| Box::pin(async move { Ok(health(&app)) }))
    },
    Route {
        access: Access::Everyone,
        ..route(GET, "/", |app, request| Box::pin(async move { Ok(index(&app, &request)) }))
    },
];

const GET: (&str, MethodFilter) = ("GET", MethodFilter::GET);
const POST: (&str, MethodFilter) = ("POST", MethodFilter::POST);

const fn route(
    method: (&'static str, MethodFilter),
    path: &'static str,
    handler: fn(Arc<App>, Request) -> Answer,
) -> Route {
    Route { method, path, access: Access::Tenants, quiet: false, handler }
}

/// Every served path: (method, path, who may use it).
pub fn paths() -> impl Iterator<Item = (&'static str, &'static str, Access)> {
    ROUTES.iter().map(|r| (r.method.0, r.path, r.access))
}

pub fn router(app: Arc<App>) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        let handler = move |State(app): State<Arc<App>>, request: Request| (route.handler)(app, request);
        router = router.route(route.path, on(route.method.1, handler));
    }
    let unknown = || async { ApiError::not_found("there is no such path") };
    let wrong_method = || async {
        let message = "the path exists, but not for this method";
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message)
    };
    router
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(app.clone(), envelope))
        .with_state(app)
}

/// Around every request, unknown paths included: id, origin, key, log line, browser headers, and a panic's end.
async fn envelope(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let arrival = app.clock.now();
    let (mut parts, body) = request.into_parts();
    let id = request_id(&parts.headers).unwrap_or_else(|| app.next_id());
    let known = ROUTES.iter().find(|r| r.path == parts.uri.path());
    let path = known.map_or("(other)", |r| r.path);
    let line = RequestLine::new(
        app.config.log.clone(),
        known.is_some_and(|r| r.quiet),
        format!("{} {path} id={id}", method_word(&parts.method)),
    );
    let origin = cors::allowed(&app.config.cors, &parts.headers);
    let early = match cors::refuse_foreign(&app.config, &parts.headers) {
        Err(error) => Some(error.into_response()),
        Ok(()) => origin.as_ref().and_then(|origin| cors::preflight(&parts, origin)),
    };
    let mut response = match (early, admit(&app, known, &parts.headers)) {
        (Some(response), _) => response,
        (None, Err(error)) => error.into_response(),
        (None, Ok(tenant)) => {
            line.set("tenant", &tenant.name);
            let peer = parts.extensions.remove().unwrap_or_default();
            parts.extensions.insert(Caller { tenant, arrival, line: line.clone(), peer });
            let run = next.run(Request::from_parts(parts, body));
            unpanicked(run)
                .await
                .unwrap_or_else(|| ApiError::internal("the request's handler panicked").into_response())
        }
    };
    line.set("status", response.status().as_u16());
    if let Some(ErrorCode(word)) = response.extensions().get() {
        line.set("code", word);
    }
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(origin) = &origin {
        cors::permit(headers, origin);
    }
    response
}

/// Who calls. What is not for everyone needs a key, whether the path exists or not.
fn admit(app: &App, route: Option<&Route>, headers: &HeaderMap) -> Result<Tenant, ApiError> {
    let Some(keys) = &app.config.keys else { return Ok(Tenant::operator()) };
    let tenant = presented(headers).and_then(|key| keys.find(key)).cloned();
    match (route.map_or(Access::Tenants, |r| r.access), tenant) {
        (Access::Everyone, tenant) => Ok(tenant.unwrap_or_else(Tenant::operator)),
        (_, None) => Err(ApiError::unauthorized()),
        (Access::Monitor, Some(tenant)) if app.config.metrics_key.as_deref() != Some(&*tenant.name) => {
            let message = "this path shows all tenants' traffic: it answers only the key set by --metrics-key";
            Err(ApiError::forbidden(message))
        }
        (_, Some(tenant)) => Ok(tenant),
    }
}

/// The client's id for a request, if it is fit for headers and logs.
fn request_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let fit = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    (!id.is_empty() && id.len() <= 128 && id.chars().all(fit)).then(|| id.to_owned())
}

fn method_word(method: &Method) -> &str {
    [&Method::GET, &Method::POST, &Method::HEAD, &Method::OPTIONS]
        .iter()
        .find(|m| **m == method)
        .map_or("(other)", |m| m.as_str())
}

/// Runs a future to its end, or to its panic.
async fn unpanicked<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        let poll = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
        match poll {
            Ok(poll) => poll.map(Some),
            Err(_) => std::task::Poll::Ready(None),
        }
    })
    .await
}

async fn generate(app: Arc<App>, request: Request, parse: Work<Job>) -> Result<Response, ApiError> {
    let (serving, caller, job) = work(&app, request, parse).await?;
    answer(&app, serving, &caller, job).await
}

async fn convert(app: Arc<App>, request: Request, convert: Work<Value>) -> Result<Response, ApiError> {
    told(work(&app, request, convert).await?.2)
}

async fn explained(app: Arc<App>, request: Request) -> Result<Response, ApiError> {
    let (serving, caller, asked) = work(&app, request, explain::asked).await?;
    told(explain::answer(&serving, &caller, asked).await?)
}

fn told(value: Value) -> Result<Response, ApiError> {
    Ok(Json(value).into_response())
}

/// What is made of a body. Takes time with its length.
type Work<T> = fn(&Serving, &Caller, &Bounds, &[u8]) -> Result<T, ApiError>;

/// Reads the body and does the work off the async threads, on so many bodies at once as there are cores.
async fn work<T: Send + 'static>(
    app: &App,
    request: Request,
    work: Work<T>,
) -> Result<(Arc<Serving>, Caller, T), ApiError> {
    let serving = app.serving()?;
    let (mut parts, body) = request.into_parts();
    let Some(caller) = parts.extensions.remove::<Caller>() else {
        return Err(ApiError::internal("the request has no caller"));
    };
    let ttft_slo = ttft_slo(&parts.headers)?;
    let body = read_body(app, &parts.headers, body).await?;
    let bounds = Bounds::of(app, &serving, ttft_slo);
    let slot = app.text_slots.clone().acquire_owned().await.map_err(|_| ApiError::closing())?;
    let working = {
        let (serving, caller) = (serving.clone(), caller.clone());
        tokio::task::spawn_blocking(move || {
            // Held to the end of the work, which goes on when its client has left.
            let _slot = slot;
            work(&serving, &caller, &bounds, &body)
        })
    };
    let done = working.await.map_err(|_| ApiError::internal("reading the request panicked"))??;
    Ok((serving, caller, done))
}

/// `x-slo-ttft-ms`: when the client wants its first token.
fn ttft_slo(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get("x-slo-ttft-ms") else { return Ok(None) };
    let ms = value.to_str().ok().and_then(|v| v.parse::<u32>().ok());
    ms.map(|ms| Some(u64::from(ms) * 1000))
        .ok_or_else(|| ApiError::field("x-slo-ttft-ms", "a number of milliseconds is needed"))
}

fn models(app: &App) -> Result<Response, ApiError> {
    let serving = app.serving()?;
    Ok(Json(json!({"object": "list", "data": [model_object(&serving)]})).into_response())
}

async fn one_model(app: Arc<App>, mut request: Request) -> Result<Response, ApiError> {
    let serving = app.serving()?;
    // Decoded: clients write the slash of `org/name` as `%2F`.
    match request.extract_parts::<Path<String>>().await {
        Ok(Path(id)) if id == serving.model.id => Ok(Json(model_object(&serving)).into_response()),
        _ => Err(serving.other_model()),
    }
}

fn model_object(serving: &Serving) -> serde_json::Value {
    json!({
        "id": serving.model.id,
        "object": "model",
        "created": serving.created,
        "owned_by": "kvist",
        "max_model_len": serving.room,
    })
}

fn health(app: &App) -> Response {
    let (status, word) = match app.serving.get() {
        None => (StatusCode::SERVICE_UNAVAILABLE, "loading"),
        Some(s) if s.runner.shared.gone() => (StatusCode::SERVICE_UNAVAILABLE, "failed"),
        Some(_) => (StatusCode::OK, "ok"),
    };
    (status, Json(json!({"status": word}))).into_response()
}

fn metrics(app: &App) -> Result<Response, ApiError> {
    let serving = app.serving()?;
    let scrape = Scrape {
        model: &serving.model.id,
        info: &serving.info,
        stats: &serving.runner.shared.stats(),
        book: &serving.runner.shared.book(),
        replies: &serving.replies,
        tier: serving.tier.as_ref(),
        ignored_fields: app.ignored.load(Ordering::Relaxed),
        spliced_tokens: app.spliced.load(Ordering::Relaxed),
        connections: app.connections.load(Ordering::Relaxed),
    };
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Ok((content_type, scrape.render()).into_response())
}

fn index(app: &App, request: &Request) -> Response {
    let keyed = app.config.keys.is_some();
    let model = app.serving.get().filter(|_| !keyed).map(|s| s.model.id.as_str());
    page(request.headers(), model, keyed)
}
