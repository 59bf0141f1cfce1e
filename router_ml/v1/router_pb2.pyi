from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Rejection(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REJECTION_UNSPECIFIED: _ClassVar[Rejection]
    REJECTION_OTHER: _ClassVar[Rejection]
    REJECTION_MODEL_NOT_ALLOWED: _ClassVar[Rejection]
    REJECTION_MODEL_DENIED: _ClassVar[Rejection]
    REJECTION_REGION: _ClassVar[Rejection]
    REJECTION_CAPABILITY: _ClassVar[Rejection]
    REJECTION_CONTEXT_WINDOW: _ClassVar[Rejection]
    REJECTION_OUTPUT_LIMIT: _ClassVar[Rejection]
    REJECTION_MAX_COST: _ClassVar[Rejection]
    REJECTION_PRICE_UNKNOWN: _ClassVar[Rejection]

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_UNSPECIFIED: _ClassVar[Reason]
    REASON_BEST_VALUE: _ClassVar[Reason]
    REASON_CHEAPEST_CLEARING: _ClassVar[Reason]
    REASON_NONE_CLEARS: _ClassVar[Reason]
    REASON_ONLY_ELIGIBLE: _ClassVar[Reason]
    REASON_TARGET_UNREACHABLE: _ClassVar[Reason]
    REASON_ROUTER_UNAVAILABLE: _ClassVar[Reason]
    REASON_EXPLORED: _ClassVar[Reason]

class ErrorCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_CODE_UNSPECIFIED: _ClassVar[ErrorCode]
    ERROR_CODE_INVALID_REQUEST: _ClassVar[ErrorCode]
    ERROR_CODE_NO_ELIGIBLE_OFFER: _ClassVar[ErrorCode]
    ERROR_CODE_NOT_SET_UP: _ClassVar[ErrorCode]
    ERROR_CODE_UNAVAILABLE: _ClassVar[ErrorCode]
    ERROR_CODE_INTERNAL: _ClassVar[ErrorCode]
REJECTION_UNSPECIFIED: Rejection
REJECTION_OTHER: Rejection
REJECTION_MODEL_NOT_ALLOWED: Rejection
REJECTION_MODEL_DENIED: Rejection
REJECTION_REGION: Rejection
REJECTION_CAPABILITY: Rejection
REJECTION_CONTEXT_WINDOW: Rejection
REJECTION_OUTPUT_LIMIT: Rejection
REJECTION_MAX_COST: Rejection
REJECTION_PRICE_UNKNOWN: Rejection
REASON_UNSPECIFIED: Reason
REASON_BEST_VALUE: Reason
REASON_CHEAPEST_CLEARING: Reason
REASON_NONE_CLEARS: Reason
REASON_ONLY_ELIGIBLE: Reason
REASON_TARGET_UNREACHABLE: Reason
REASON_ROUTER_UNAVAILABLE: Reason
REASON_EXPLORED: Reason
ERROR_CODE_UNSPECIFIED: ErrorCode
ERROR_CODE_INVALID_REQUEST: ErrorCode
ERROR_CODE_NO_ELIGIBLE_OFFER: ErrorCode
ERROR_CODE_NOT_SET_UP: ErrorCode
ERROR_CODE_UNAVAILABLE: ErrorCode
ERROR_CODE_INTERNAL: ErrorCode

class RouteRequest(_message.Message):
    __slots__ = ("text", "messages", "embedding", "segment", "session_id", "tenant", "allowed_models", "denied_models", "allowed_regions", "required_capabilities", "max_cost_usd", "max_output_tokens", "quality_target", "min_success_probability", "input_tokens", "cached_input_tokens", "batch")
    class CachedInputTokensEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    TEXT_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_MODELS_FIELD_NUMBER: _ClassVar[int]
    DENIED_MODELS_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_REGIONS_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    MAX_COST_USD_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUALITY_TARGET_FIELD_NUMBER: _ClassVar[int]
    MIN_SUCCESS_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    text: str
    messages: Conversation
    embedding: Embedding
    segment: str
    session_id: str
    tenant: str
    allowed_models: _containers.RepeatedScalarFieldContainer[str]
    denied_models: _containers.RepeatedScalarFieldContainer[str]
    allowed_regions: _containers.RepeatedScalarFieldContainer[str]
    required_capabilities: _containers.RepeatedScalarFieldContainer[str]
    max_cost_usd: float
    max_output_tokens: int
    quality_target: float
    min_success_probability: float
    input_tokens: int
    cached_input_tokens: _containers.ScalarMap[str, int]
    batch: bool
    def __init__(self, text: _Optional[str] = ..., messages: _Optional[_Union[Conversation, _Mapping]] = ..., embedding: _Optional[_Union[Embedding, _Mapping]] = ..., segment: _Optional[str] = ..., session_id: _Optional[str] = ..., tenant: _Optional[str] = ..., allowed_models: _Optional[_Iterable[str]] = ..., denied_models: _Optional[_Iterable[str]] = ..., allowed_regions: _Optional[_Iterable[str]] = ..., required_capabilities: _Optional[_Iterable[str]] = ..., max_cost_usd: _Optional[float] = ..., max_output_tokens: _Optional[int] = ..., quality_target: _Optional[float] = ..., min_success_probability: _Optional[float] = ..., input_tokens: _Optional[int] = ..., cached_input_tokens: _Optional[_Mapping[str, int]] = ..., batch: _Optional[bool] = ...) -> None: ...

class Conversation(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    def __init__(self, messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ...) -> None: ...

class Message(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class RouteResponse(_message.Message):
    __slots__ = ("decision_id", "offer", "model", "fallbacks", "candidates", "reasons", "propensity", "quality_target", "version", "arm", "bundle_sha256")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FALLBACKS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    QUALITY_TARGET_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_SHA256_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    offer: str
    model: str
    fallbacks: _containers.RepeatedScalarFieldContainer[str]
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    reasons: _containers.RepeatedScalarFieldContainer[Reason]
    propensity: float
    quality_target: float
    version: str
    arm: str
    bundle_sha256: str
    def __init__(self, decision_id: _Optional[str] = ..., offer: _Optional[str] = ..., model: _Optional[str] = ..., fallbacks: _Optional[_Iterable[str]] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., reasons: _Optional[_Iterable[_Union[Reason, str]]] = ..., propensity: _Optional[float] = ..., quality_target: _Optional[float] = ..., version: _Optional[str] = ..., arm: _Optional[str] = ..., bundle_sha256: _Optional[str] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("offer", "model", "p_success", "output_tokens", "cost_usd", "latency_ms", "rejected")
    OFFER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    P_SUCCESS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COST_USD_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    offer: str
    model: str
    p_success: float
    output_tokens: float
    cost_usd: float
    latency_ms: float
    rejected: Rejection
    def __init__(self, offer: _Optional[str] = ..., model: _Optional[str] = ..., p_success: _Optional[float] = ..., output_tokens: _Optional[float] = ..., cost_usd: _Optional[float] = ..., latency_ms: _Optional[float] = ..., rejected: _Optional[_Union[Rejection, str]] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message", "rejected")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    code: ErrorCode
    message: str
    rejected: _containers.RepeatedCompositeFieldContainer[RejectedOffer]
    def __init__(self, code: _Optional[_Union[ErrorCode, str]] = ..., message: _Optional[str] = ..., rejected: _Optional[_Iterable[_Union[RejectedOffer, _Mapping]]] = ...) -> None: ...

class RejectedOffer(_message.Message):
    __slots__ = ("offer", "reason")
    OFFER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    offer: str
    reason: Rejection
    def __init__(self, offer: _Optional[str] = ..., reason: _Optional[_Union[Rejection, str]] = ...) -> None: ...

class RouteBatchRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[RouteRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[RouteRequest, _Mapping]]] = ...) -> None: ...

class RouteBatchResponse(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[RouteBatchItem]
    def __init__(self, items: _Optional[_Iterable[_Union[RouteBatchItem, _Mapping]]] = ...) -> None: ...

class RouteBatchItem(_message.Message):
    __slots__ = ("decision", "error")
    DECISION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    decision: RouteResponse
    error: Error
    def __init__(self, decision: _Optional[_Union[RouteResponse, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class RouteStreamRequest(_message.Message):
    __slots__ = ("id", "request")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    id: str
    request: RouteRequest
    def __init__(self, id: _Optional[str] = ..., request: _Optional[_Union[RouteRequest, _Mapping]] = ...) -> None: ...

class RouteStreamResponse(_message.Message):
    __slots__ = ("id", "decision", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: str
    decision: RouteResponse
    error: Error
    def __init__(self, id: _Optional[str] = ..., decision: _Optional[_Union[RouteResponse, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class ReportOutcomesRequest(_message.Message):
    __slots__ = ("outcomes",)
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedCompositeFieldContainer[Outcome]
    def __init__(self, outcomes: _Optional[_Iterable[_Union[Outcome, _Mapping]]] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("decision_id", "offer", "model", "success", "input_tokens", "cached_input_tokens", "output_tokens", "cost_usd", "latency_ms", "ttft_ms", "error")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COST_USD_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    offer: str
    model: str
    success: float
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    cost_usd: float
    latency_ms: float
    ttft_ms: float
    error: str
    def __init__(self, decision_id: _Optional[str] = ..., offer: _Optional[str] = ..., model: _Optional[str] = ..., success: _Optional[float] = ..., input_tokens: _Optional[int] = ..., cached_input_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., cost_usd: _Optional[float] = ..., latency_ms: _Optional[float] = ..., ttft_ms: _Optional[float] = ..., error: _Optional[str] = ...) -> None: ...

class ReportOutcomesResponse(_message.Message):
    __slots__ = ("accepted", "rejected")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    rejected: _containers.RepeatedCompositeFieldContainer[RejectedOutcome]
    def __init__(self, accepted: _Optional[int] = ..., rejected: _Optional[_Iterable[_Union[RejectedOutcome, _Mapping]]] = ...) -> None: ...

class RejectedOutcome(_message.Message):
    __slots__ = ("index", "decision_id", "reason")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    index: int
    decision_id: str
    reason: str
    def __init__(self, index: _Optional[int] = ..., decision_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("version", "bundle_sha256", "bundle_format", "created", "training_start", "training_end", "encoder", "embedding_size", "models", "offers", "catalog_as_of", "segments", "quality_targets", "default_quality_target", "max_text_chars", "refused", "exploration", "layer_salt", "tests", "shadows")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_SHA256_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    TRAINING_START_FIELD_NUMBER: _ClassVar[int]
    TRAINING_END_FIELD_NUMBER: _ClassVar[int]
    ENCODER_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_SIZE_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    OFFERS_FIELD_NUMBER: _ClassVar[int]
    CATALOG_AS_OF_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    QUALITY_TARGETS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_QUALITY_TARGET_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXT_CHARS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    EXPLORATION_FIELD_NUMBER: _ClassVar[int]
    LAYER_SALT_FIELD_NUMBER: _ClassVar[int]
    TESTS_FIELD_NUMBER: _ClassVar[int]
    SHADOWS_FIELD_NUMBER: _ClassVar[int]
    version: str
    bundle_sha256: str
    bundle_format: int
    created: str
    training_start: str
    training_end: str
    encoder: str
    embedding_size: int
    models: _containers.RepeatedScalarFieldContainer[str]
    offers: _containers.RepeatedScalarFieldContainer[str]
    catalog_as_of: str
    segments: _containers.RepeatedScalarFieldContainer[str]
    quality_targets: _containers.RepeatedScalarFieldContainer[float]
    default_quality_target: float
    max_text_chars: int
    refused: str
    exploration: str
    layer_salt: str
    tests: _containers.RepeatedCompositeFieldContainer[AbTest]
    shadows: _containers.RepeatedCompositeFieldContainer[ShadowTest]
    def __init__(self, version: _Optional[str] = ..., bundle_sha256: _Optional[str] = ..., bundle_format: _Optional[int] = ..., created: _Optional[str] = ..., training_start: _Optional[str] = ..., training_end: _Optional[str] = ..., encoder: _Optional[str] = ..., embedding_size: _Optional[int] = ..., models: _Optional[_Iterable[str]] = ..., offers: _Optional[_Iterable[str]] = ..., catalog_as_of: _Optional[str] = ..., segments: _Optional[_Iterable[str]] = ..., quality_targets: _Optional[_Iterable[float]] = ..., default_quality_target: _Optional[float] = ..., max_text_chars: _Optional[int] = ..., refused: _Optional[str] = ..., exploration: _Optional[str] = ..., layer_salt: _Optional[str] = ..., tests: _Optional[_Iterable[_Union[AbTest, _Mapping]]] = ..., shadows: _Optional[_Iterable[_Union[ShadowTest, _Mapping]]] = ...) -> None: ...

class AbTest(_message.Message):
    __slots__ = ("name", "salt", "unit", "segments", "share", "start", "arms")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    ARMS_FIELD_NUMBER: _ClassVar[int]
    name: str
    salt: str
    unit: str
    segments: _containers.RepeatedScalarFieldContainer[str]
    share: float
    start: float
    arms: _containers.RepeatedCompositeFieldContainer[AbTestArm]
    def __init__(self, name: _Optional[str] = ..., salt: _Optional[str] = ..., unit: _Optional[str] = ..., segments: _Optional[_Iterable[str]] = ..., share: _Optional[float] = ..., start: _Optional[float] = ..., arms: _Optional[_Iterable[_Union[AbTestArm, _Mapping]]] = ...) -> None: ...

class AbTestArm(_message.Message):
    __slots__ = ("name", "version", "bundle_sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    bundle_sha256: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., bundle_sha256: _Optional[str] = ...) -> None: ...

class ShadowTest(_message.Message):
    __slots__ = ("name", "salt", "unit", "segments", "share", "version", "bundle_sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    salt: str
    unit: str
    segments: _containers.RepeatedScalarFieldContainer[str]
    share: float
    version: str
    bundle_sha256: str
    def __init__(self, name: _Optional[str] = ..., salt: _Optional[str] = ..., unit: _Optional[str] = ..., segments: _Optional[_Iterable[str]] = ..., share: _Optional[float] = ..., version: _Optional[str] = ..., bundle_sha256: _Optional[str] = ...) -> None: ...
