//! Method and path to one route; everything else is 404, or 405 with the methods that the path has.

use std::borrow::Cow;

use crate::auth::Scope;
use crate::error::{ApiError, Code, Dialect};
use crate::http::{Method, Request};

/// What a request asks for. HEAD routes as GET does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route<'a> {
    ChatCompletions,
    Responses,
    Completions,
    Inference,
    InferenceStream,
    Embeddings,
    Models,
    /// The id, percent-decoded.
    Model(Cow<'a, str>),
    /// DELETE of the same path.
    DeleteModel(Cow<'a, str>),
    ModelStatus(Cow<'a, str>),
    LoadModel,
    SwapModel,
    /// The request's id.
    Receipt(Cow<'a, str>),
    Tokenize,
    Detokenize,
    Health,
    HealthLive,
    HealthReady,
    Metrics,
    Devices,
    Stats,
    /// What this server offers, as OpenAPI.
    OpenApi,
    /// The page for browsers: chat and live numbers.
    Page,
    /// OPTIONS: 204 with these methods in Allow.
    Options(&'static str),
}

impl Route<'_> {
    /// Which error body this route speaks.
    pub fn dialect(&self) -> Dialect {
        match self {
            Self::ChatCompletions
            | Self::Responses
            | Self::Completions
            | Self::Embeddings
            | Self::Models
            | Self::Model(_) => Dialect::OpenAi,
            _ => Dialect::Own,
        }
    }

    /// Who may use it.
    pub fn access(&self) -> Access {
        match self {
            Self::LoadModel => Access::Guarded(Scope::ModelWrite),
            Self::SwapModel | Self::DeleteModel(_) => Access::Guarded(Scope::ModelManage),
            Self::Models | Self::Model(_) | Self::ModelStatus(_) | Self::Receipt(_) => {
                Access::Keyed(Some(Scope::ModelRead))
            }
            Self::ChatCompletions
            | Self::Responses
            | Self::Completions
            | Self::Embeddings
            | Self::Inference
            | Self::InferenceStream
            | Self::Tokenize
            | Self::Detokenize
            | Self::Devices
            | Self::Stats => Access::Keyed(None),
            Self::Health
            | Self::HealthLive
            | Self::HealthReady
            | Self::Metrics
            | Self::OpenApi
            | Self::Page
            | Self::Options(_) => Access::Open,
        }
    }
}

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Open,
    /// Anyone, unless every request must have a key; then a key, with that scope where one is named.
    Keyed(Option<Scope>),
    /// Whoever has a key with that scope.
    Guarded(Scope),
}

/// Finds the route of `path` (as [`Request::path`] gives it).
///
/// # Errors
/// 404 for an unknown path, 405 with Allow for a known one; [`dialect_of`] says how to word either.
pub fn route(method: Method, path: &str) -> Result<Route<'_>, ApiError> {
    if path == "*" {
        return Ok(Route::Options(ANY));
    }
    let (route, allow) = find(path).ok_or_else(|| not_found(path))?;
    match (method, route) {
        (Method::Delete, Route::Model(id)) => Ok(Route::DeleteModel(id)),
        (_, route) => plain_method(method, route, allow),
    }
}

/// Of OpenAI's paths, those below responses that name no response.
const RESPONSE_ACTIONS: [&str; 2] = ["compact", "input_tokens"];

fn not_found(path: &str) -> ApiError {
    if path.strip_prefix("/v1/responses/").is_some_and(|id| !RESPONSE_ACTIONS.contains(&id)) {
        let message = "no response is kept here, so that none can be fetched, cancelled or deleted";
        return ApiError::new(404, Code::InvalidRequest, message);
    }
    ApiError::path_not_found()
}

fn plain_method<'a>(method: Method, route: Route<'a>, allow: &'static str) -> Result<Route<'a>, ApiError> {
    match method {
        Method::Options => Ok(Route::Options(allow)),
        Method::Get | Method::Head if allow.starts_with("GET") => Ok(route),
        Method::Post if allow == POST => Ok(route),
        _ => Err(ApiError::method_not_allowed(allow)),
    }
}

/// Which error body answers for `path`, also where [`route`] refuses it; unknown paths speak OpenAI's.
pub fn dialect_of(path: &str) -> Dialect {
    find(path).map_or(Dialect::OpenAi, |(route, _)| route.dialect())
}

fn find(path: &str) -> Option<(Route<'_>, &'static str)> {
    PLACES.iter().find_map(|place| Some((place.target.of(path)?, place.allow)))
}

/// The path as documents write it that `path` is one of.
pub fn template(path: &str) -> Option<String> {
    PLACES.iter().find(|place| place.target.of(path).is_some()).map(|place| place.target.template())
}

/// Every path as documents write it (`/v1/models/{id}`), with what each of its methods but HEAD and OPTIONS leads to.
pub(super) fn described() -> impl Iterator<Item = (String, Vec<(Method, Route<'static>)>)> {
    PLACES.iter().map(|place| {
        let route = match &place.target {
            Target::Fixed(_, route) => route.clone(),
            Target::Named { route, .. } => route("x".into()),
        };
        let methods = place.allow.split(", ").filter_map(|method| match method {
            "GET" => Some((Method::Get, route.clone())),
            "POST" => Some((Method::Post, route.clone())),
            "DELETE" => Some((Method::Delete, Route::DeleteModel("x".into()))),
            _ => None,
        });
        (place.target.template(), methods.collect())
    })
}

/// A path of the server, or a family of them.
struct Place {
    target: Target,
    allow: &'static str,
}

enum Target {
    Fixed(&'static str, Route<'static>),
    /// One part of the path is a name, percent-encoded and not empty.
    Named {
        before: &'static str,
        name: &'static str,
        after: &'static str,
        route: for<'p> fn(Cow<'p, str>) -> Route<'p>,
    },
}

impl Target {
    fn of<'p>(&self, path: &'p str) -> Option<Route<'p>> {
        match self {
            Self::Fixed(fixed, route) => (*fixed == path).then(|| route.clone()),
            Self::Named { before, after, route, .. } => {
                let name = path.strip_prefix(before)?.strip_suffix(after)?;
                if name.is_empty() { None } else { percent_decode(name).map(route) }
            }
        }
    }

    fn template(&self) -> String {
        match self {
            Self::Fixed(path, _) => (*path).to_owned(),
            Self::Named { before, name, after, .. } => format!("{before}{{{name}}}{after}"),
        }
    }
}

const fn fixed(path: &'static str, route: Route<'static>, allow: &'static str) -> Place {
    Place { target: Target::Fixed(path, route), allow }
}

/// The first that fits counts.
static PLACES: [Place; 22] = [
    fixed("/v1/chat/completions", Route::ChatCompletions, POST),
    fixed("/v1/responses", Route::Responses, POST),
    fixed("/v1/completions", Route::Completions, POST),
    fixed("/v1/embeddings", Route::Embeddings, POST),
    fixed("/v1/inference", Route::Inference, POST),
    fixed("/v1/inference/stream", Route::InferenceStream, POST),
    fixed("/v1/tokenize", Route::Tokenize, POST),
    fixed("/v1/detokenize", Route::Detokenize, POST),
    fixed("/v1/models", Route::Models, GET),
    fixed("/v1/models/load", Route::LoadModel, POST),
    fixed("/v1/models/swap", Route::SwapModel, POST),
    Place {
        target: Target::Named {
            before: "/v1/models/",
            name: "id",
            after: "/status",
            route: |name| Route::ModelStatus(name),
        },
        allow: GET,
    },
    Place {
        target: Target::Named { before: "/v1/models/", name: "id", after: "", route: |name| Route::Model(name) },
        allow: GET_DELETE,
    },
    Place {
        target: Target::Named {
            before: "/v1/receipts/",
            name: "request_id",
            after: "",
            route: |name| Route::Receipt(name),
        },
        allow: GET,
    },
    fixed("/v1/devices", Route::Devices, GET),
    fixed("/v1/stats", Route::Stats, GET),
    fixed("/health", Route::Health, GET),
    fixed("/health/live", Route::HealthLive, GET),
    fixed("/health/ready", Route::HealthReady, GET),
    fixed("/metrics", Route::Metrics, GET),
    fixed("/openapi.json", Route::OpenApi, GET),
    fixed("/", Route::Page, GET),
];

/// A body must be JSON if it says what it is.
///
/// # Errors
/// 415 for another Content-Type, or a Content-Encoding.
pub fn check_json_content_type(request: &Request) -> Result<(), ApiError> {
    let unsupported = |message: &'static str| Err(ApiError::new(415, Code::InvalidRequest, message));
    for (name, value) in request.headers() {
        if name.eq_ignore_ascii_case("content-type") && !is_json(value) {
            return unsupported("Content-Type must be application/json in UTF-8");
        }
        if name.eq_ignore_ascii_case("content-encoding") && !value.eq_ignore_ascii_case(b"identity") {
            return unsupported("Content-Encoding is not supported");
        }
    }
    Ok(())
}

fn is_json(value: &[u8]) -> bool {
    let mut parts = value.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
    if !parts.next().is_some_and(|media_type| media_type.eq_ignore_ascii_case(b"application/json")) {
        return false;
    }
    parts.all(|parameter| {
        let Some(charset) = parameter.get(.."charset=".len()) else { return true };
        if !charset.eq_ignore_ascii_case(b"charset=") {
            return true;
        }
        let charset = parameter["charset=".len()..].trim_ascii();
        let charset = charset.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(charset);
        charset.eq_ignore_ascii_case(b"utf-8") || charset.eq_ignore_ascii_case(b"us-ascii")
    })
}

/// None if `text` decodes to what no name can hold: not UTF-8, or a control character.
pub fn percent_decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'%' {
            bytes.push(byte);
            rest = tail;
            continue;
        }
        let hex = |at: usize| tail.get(at).and_then(|&digit| char::from(digit).to_digit(16));
        bytes.push((hex(0)? * 16 + hex(1)?) as u8);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains(char::is_control)).map(Cow::Owned)
}

const GET: &str = "GET, HEAD, OPTIONS";
const GET_DELETE: &str = "GET, HEAD, DELETE, OPTIONS";
const POST: &str = "POST, OPTIONS";
const ANY: &str = "GET, HEAD, POST, OPTIONS";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_path_with_another_method_names_the_right_ones() {
        let error = route(Method::Get, "/v1/completions").unwrap_err();
        assert_eq!((error.status, error.allow), (405, Some("POST, OPTIONS")));
        let error = route(Method::Put, "/v1/models/x").unwrap_err();
        assert_eq!((error.status, error.allow), (405, Some("GET, HEAD, DELETE, OPTIONS")));
        let error = route(Method::Get, "/v1/models/load").unwrap_err();
        assert_eq!((error.status, error.allow), (405, Some("POST, OPTIONS")));
        let error = route(Method::Delete, "/v1/models/x/status").unwrap_err();
        assert_eq!((error.status, error.allow), (405, Some("GET, HEAD, OPTIONS")));
        assert_eq!(route(Method::Delete, "/v1/models/x"), Ok(Route::DeleteModel("x".into())));
        assert_eq!(route(Method::Get, "/v1/models/a%2Fb/status"), Ok(Route::ModelStatus("a/b".into())));
        assert_eq!(route(Method::Options, "/health"), Ok(Route::Options(GET)));
        assert_eq!(route(Method::Options, "*"), Ok(Route::Options(ANY)));
        assert_eq!(route(Method::Head, "/health"), Ok(Route::Health));
        assert_eq!(route(Method::Get, "/"), Ok(Route::Page));
        assert_eq!(template("/v1/models/a%2Fb/status").as_deref(), Some("/v1/models/{id}/status"));
        assert_eq!((template("/v1/models").as_deref(), template("/v1/models/")), (Some("/v1/models"), None));
        assert_eq!(dialect_of("/v1/inference"), Dialect::Own);
        assert_eq!(dialect_of("/v1/completions"), Dialect::OpenAi);
    }

    #[test]
    fn unknown_paths_are_404() {
        for path in [
            "",
            "/v1",
            "/v1/",
            "/v1/models/",
            "/health/",
            "/V1/models",
            "//v1/models",
            "/v1/models/%ff",
            "/v1/receipts/",
        ] {
            assert_eq!(route(Method::Get, path).unwrap_err().status, 404, "{path}");
        }
    }

    #[test]
    fn responses_are_not_kept() {
        for (method, path) in [
            (Method::Get, "/v1/responses/resp_1"),
            (Method::Delete, "/v1/responses/resp_1"),
            (Method::Post, "/v1/responses/resp_1/cancel"),
        ] {
            let error = route(method, path).unwrap_err();
            assert!(error.status == 404 && error.message.contains("kept"), "{error}");
        }
        assert_eq!(route(Method::Get, "/v1/responses").unwrap_err().allow, Some(POST));
    }

    #[test]
    fn model_ids_are_percent_decoded() {
        let decoded = Route::Model(Cow::Borrowed("org/model:1"));
        assert_eq!(route(Method::Get, "/v1/models/org%2Fmodel:1"), Ok(decoded));
        assert_eq!(route(Method::Get, "/v1/models/a%00").unwrap_err().status, 404);
    }

    #[test]
    fn only_json_content_types_pass() {
        for value in ["application/json", "Application/JSON; charset=utf-8", "application/json;charset=\"UTF-8\""] {
            assert!(is_json(value.as_bytes()), "{value}");
        }
        for value in ["text/plain", "application/jsonx", "application/json; charset=utf-16", "", "multipart/form-data"]
        {
            assert!(!is_json(value.as_bytes()), "{value}");
        }
    }
}
