//! STUB
pub struct Envelope { pub exchange: String, pub routing_key: String, pub mandatory: bool, pub properties: Properties, pub headers: Vec<(String, HeaderValue)>, pub body: Vec<u8> }
pub struct Properties { pub message_id: String, pub type_: String, pub content_type: String, pub timestamp_s: u64, pub app_id: String, pub correlation_id: Option<String> }
pub enum HeaderValue { Bool(bool), I64(i64), F64(f64), String(String), Null, List(Vec<HeaderValue>), Table(Vec<(String, HeaderValue)>) }
pub struct EnvelopeOptions;
impl From<&crate::config::Config> for EnvelopeOptions { fn from(_: &crate::config::Config) -> Self { Self } }
pub struct EnvelopeBuilder;
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal { pub reason: crate::reason::Reason, pub detail: String }
impl EnvelopeBuilder { pub fn new(_: crate::route::Router, _: EnvelopeOptions) -> Self { Self } pub fn build(&self, _: &mut crate::message::Message) -> Result<Envelope, Refusal> { unimplemented!() } }
