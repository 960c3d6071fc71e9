//! STUB
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct RouteError;
#[derive(Clone)]
pub struct Router;
pub struct RoutingRules;
impl From<&crate::config::Routing> for RoutingRules { fn from(_: &crate::config::Routing) -> Self { Self } }
impl Router { pub fn new(_: RoutingRules) -> Result<Self, RouteError> { Ok(Self) } }
