//! Reading bodies within bounds of size and time.

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use tokio::time::timeout;

use crate::api::ApiError;
use crate::app::App;

/// Reads a whole body, or says why not. Nothing is allocated for bytes that were only announced.
pub async fn read_body(app: &App, headers: &HeaderMap, mut body: Body) -> Result<Bytes, ApiError> {
    if let Some(coding) = headers.get(header::CONTENT_ENCODING)
        && !coding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        let message = "a compressed request body is not supported; send it without `content-encoding`";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", message));
    }
    let config = &app.config;
    let limit = config.max_body;
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|n| n > limit as u64) {
        return Err(ApiError::too_large(limit));
    }
    let read = async {
        let mut bytes = Vec::new();
        loop {
            let frame = match timeout(config.body_idle_timeout, body.frame()).await {
                Err(_) => return Err(too_slow()),
                Ok(None) => return Ok(bytes.into()),
                Ok(Some(Err(_))) if *app.closing.borrow() => return Err(ApiError::closing()),
                Ok(Some(Err(_))) => return Err(ApiError::invalid("the request body broke off")),
                Ok(Some(Ok(frame))) => frame,
            };
            if let Ok(data) = frame.into_data() {
                if bytes.len() + data.len() > limit {
                    return Err(ApiError::too_large(limit));
                }
                bytes.extend_from_slice(&data);
            }
        }
    };
    timeout(config.body_timeout, read).await.unwrap_or_else(|_| Err(too_slow()))
}

fn too_slow() -> ApiError {
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout_error", "the request body came too slowly")
}
