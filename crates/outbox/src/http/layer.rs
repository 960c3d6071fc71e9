//! The tower layer: selects the requests that are commands, names them, and runs them.

use std::{
    fmt::Display,
    future::Future,
    ops::Deref,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, header, request::Parts};
use http_body::Body;
use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited};
use tokio::time::timeout;
use tokio_postgres::Client;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    IdempotencyError, IdempotencyOptions,
    command::Connection,
    execute::{BoxError, execute},
    key,
    problem::Problem,
    shared::{BoxFuture, Connect, Shared},
};
use crate::{
    inbox::{Inbox, Operation},
    metrics,
};

/// Applies each command once. Cheap to clone; put it on the routes that are commands (with axum: `route_layer`, so
/// that an unknown path takes no key).
#[derive(Clone)]
pub struct IdempotencyLayer(Arc<Shared>);

impl IdempotencyLayer {
    /// - `inbox` names the service: two services in one database do not share keys.
    /// - `connect` gets a connection of the service's pool, and `client` shows it as a client.
    /// - `caller` returns the authenticated sender of a request; each caller has its own keys. The layer answers `None` with
    ///   401. A service without callers returns `Some(String::new())`.
    pub fn new<C, F, E>(
        inbox: Inbox,
        options: IdempotencyOptions,
        connect: impl Fn() -> F + Send + Sync + 'static,
        client: fn(&C) -> &Client,
        caller: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static,
    ) -> Result<Self, IdempotencyError>
    where
        C: Send + Sync + 'static,
        F: Future<Output = Result<C, E>> + Send + 'static,
        E: Display,
    {
        options.check()?;
        let connect: Connect = Box::new(move || {
            let connected = connect();
            Box::pin(async move {
                let connection = connected.await.map_err(|error| error.to_string())?;
                Ok(Box::new(Shown { connection, client }) as Connection)
            })
        });
        Ok(Self(Arc::new(Shared {
            inbox,
            options,
            connect,
            caller: Box::new(caller),
        })))
    }

    /// Deletes keys older than the retention and measures effects in doubt, for as long as it is polled. Spawn it once in each
    /// service, after the service has installed the recorder of its metrics.
    pub async fn forget_expired(&self) {
        let Shared {
            inbox,
            options,
            connect,
            ..
        } = &*self.0;
        metrics::started(
            inbox.consumer(),
            options.handler_timeout,
            &metrics::COMMANDS,
        );
        inbox
            .forget_expired(options.retention, connect, |c| c)
            .await;
    }
}

/// A pool's connection, shown as a client.
struct Shown<C> {
    connection: C,
    client: fn(&C) -> &Client,
}

impl<C> Deref for Shown<C> {
    type Target = Client;

    fn deref(&self) -> &Client {
        (self.client)(&self.connection)
    }
}

impl<S> Layer<S> for IdempotencyLayer {
    type Service = Idempotent<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Idempotent {
            shared: Arc::clone(&self.0),
            inner,
        }
    }
}

/// A service whose commands are applied once.
#[derive(Clone)]
pub struct Idempotent<S> {
    shared: Arc<Shared>,
    inner: S,
}

/// The request as the inner service gets it: untouched, or a command with its whole body.
type Inward<B> = Request<Either<B, Full<Bytes>>>;
type Outward<B> = Response<Either<B, Full<Bytes>>>;

impl<S, B, R> Service<Request<B>> for Idempotent<S>
where
    S: Service<Inward<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Outward<R>;
    type Error = S::Error;
    type Future = BoxFuture<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // Call the service that was polled ready, not its clone.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        if !self.shared.options.methods.contains(request.method()) {
            let passed = inner.call(request.map(Either::Left));
            return Box::pin(async move { Ok(passed.await?.map(Either::Left)) });
        }
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let answered = command(shared, inner, request).await?;
            Ok(answered.map(Either::Right))
        })
    }
}

async fn command<S, B, R>(
    shared: Arc<Shared>,
    mut inner: S,
    request: Request<B>,
) -> Result<Response<Full<Bytes>>, S::Error>
where
    S: Service<Inward<B>, Response = Response<R>> + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    let retry_after = shared.options.retry_after;
    let (parts, body) = request.into_parts();
    let read = async {
        let scope = scope(&shared, &parts)?;
        let body = whole(&shared.options, body).await?;
        Ok((
            scope.map(|key| operation(key, &parts, &body)).transpose()?,
            body,
        ))
    };
    let (operation, body) = match read.await {
        Ok(read) => read,
        Err(problem) => {
            let problem: Problem = problem;
            return Ok(problem.response(retry_after));
        }
    };
    let request = Request::from_parts(parts, Full::new(body));
    let handle = move |request: Request<Full<Bytes>>| inner.call(request.map(Either::Right));
    match tokio::spawn(execute(shared, operation, request, handle)).await {
        Ok(answered) => answered,
        // The runtime is shutting down: the transaction ends with its session.
        Err(_) => Ok(Problem::Unavailable.response(retry_after)),
    }
}

/// The key with its scope; `None` for a command that needs no key.
fn scope(shared: &Shared, request: &Parts) -> Result<Option<String>, Problem> {
    let Some(key) = key::from_headers(&request.headers)? else {
        let required = shared.options.required;
        return if required {
            Err(Problem::KeyMissing)
        } else {
            Ok(None)
        };
    };
    let caller = (shared.caller)(request).ok_or(Problem::CallerUnknown)?;
    let route = (shared.options.route)(request);
    Ok(Some(key::scoped(&request.method, &route, &caller, &key)))
}

/// The operation: everything that identifies this request. Scheme and host are left out: HTTP/2 has them in its URI and HTTP/1.1
/// does not, and a retry may reach the service under another name.
fn operation(key: String, request: &Parts, body: &[u8]) -> Result<Operation, Problem> {
    let path = request
        .uri
        .path_and_query()
        .map_or("", |path| path.as_str());
    let what = format!("{} {}", request.method, key::canonical(path));
    let content_type = content_type(&request.headers);
    Operation::new(key, &what, content_type, body).map_err(|_| Problem::Internal)
}

fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE);
    value
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

async fn whole<B>(options: &IdempotencyOptions, body: B) -> Result<Bytes, Problem>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let limit = options.max_request;
    match timeout(options.request_timeout, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Problem::BodyTooLarge { limit }),
        Ok(Err(_)) => Err(Problem::BodyUnread),
        Err(_) => Err(Problem::BodyLate),
    }
}
