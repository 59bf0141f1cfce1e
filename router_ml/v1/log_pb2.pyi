from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JournalRecord(_message.Message):
    __slots__ = ("decision", "outcome", "loss", "shadow")
    DECISION_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    decision: DecisionRecord
    outcome: OutcomeRecord
    loss: LossRecord
    shadow: ShadowRecord
    def __init__(self, decision: _Optional[_Union[DecisionRecord, _Mapping]] = ..., outcome: _Optional[_Union[OutcomeRecord, _Mapping]] = ..., loss: _Optional[_Union[LossRecord, _Mapping]] = ..., shadow: _Optional[_Union[ShadowRecord, _Mapping]] = ...) -> None: ...

class LossRecord(_message.Message):
    __slots__ = ("writer", "last_number", "decisions", "reason", "time_unix_micros")
    WRITER_FIELD_NUMBER: _ClassVar[int]
    LAST_NUMBER_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TIME_UNIX_MICROS_FIELD_NUMBER: _ClassVar[int]
    writer: str
    last_number: int
    decisions: int
    reason: str
    time_unix_micros: int
    def __init__(self, writer: _Optional[str] = ..., last_number: _Optional[int] = ..., decisions: _Optional[int] = ..., reason: _Optional[str] = ..., time_unix_micros: _Optional[int] = ...) -> None: ...

class DecisionRecord(_message.Message):
    __slots__ = ("decision_id", "time_unix_micros", "request", "offer", "model", "fallbacks", "candidates", "reasons", "propensity", "quality_target", "version", "arm", "bundle_sha256", "number", "exploration", "arm_propensity")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_UNIX_MICROS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
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
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    EXPLORATION_FIELD_NUMBER: _ClassVar[int]
    ARM_PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    time_unix_micros: int
    request: RequestRecord
    offer: str
    model: str
    fallbacks: _containers.RepeatedScalarFieldContainer[str]
    candidates: _containers.RepeatedCompositeFieldContainer[CandidateRecord]
    reasons: _containers.RepeatedScalarFieldContainer[str]
    propensity: float
    quality_target: float
    version: str
    arm: str
    bundle_sha256: str
    number: int
    exploration: ExplorationRecord
    arm_propensity: float
    def __init__(self, decision_id: _Optional[str] = ..., time_unix_micros: _Optional[int] = ..., request: _Optional[_Union[RequestRecord, _Mapping]] = ..., offer: _Optional[str] = ..., model: _Optional[str] = ..., fallbacks: _Optional[_Iterable[str]] = ..., candidates: _Optional[_Iterable[_Union[CandidateRecord, _Mapping]]] = ..., reasons: _Optional[_Iterable[str]] = ..., propensity: _Optional[float] = ..., quality_target: _Optional[float] = ..., version: _Optional[str] = ..., arm: _Optional[str] = ..., bundle_sha256: _Optional[str] = ..., number: _Optional[int] = ..., exploration: _Optional[_Union[ExplorationRecord, _Mapping]] = ..., arm_propensity: _Optional[float] = ...) -> None: ...

class ShadowRecord(_message.Message):
    __slots__ = ("decision_id", "time_unix_micros", "test", "version", "bundle_sha256", "offer", "model", "p_success", "cost_usd", "agrees", "served_p_success", "served_cost_usd", "served_propensity", "micros", "error")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_UNIX_MICROS_FIELD_NUMBER: _ClassVar[int]
    TEST_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    P_SUCCESS_FIELD_NUMBER: _ClassVar[int]
    COST_USD_FIELD_NUMBER: _ClassVar[int]
    AGREES_FIELD_NUMBER: _ClassVar[int]
    SERVED_P_SUCCESS_FIELD_NUMBER: _ClassVar[int]
    SERVED_COST_USD_FIELD_NUMBER: _ClassVar[int]
    SERVED_PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    MICROS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    time_unix_micros: int
    test: str
    version: str
    bundle_sha256: str
    offer: str
    model: str
    p_success: float
    cost_usd: float
    agrees: bool
    served_p_success: float
    served_cost_usd: float
    served_propensity: float
    micros: int
    error: str
    def __init__(self, decision_id: _Optional[str] = ..., time_unix_micros: _Optional[int] = ..., test: _Optional[str] = ..., version: _Optional[str] = ..., bundle_sha256: _Optional[str] = ..., offer: _Optional[str] = ..., model: _Optional[str] = ..., p_success: _Optional[float] = ..., cost_usd: _Optional[float] = ..., agrees: _Optional[bool] = ..., served_p_success: _Optional[float] = ..., served_cost_usd: _Optional[float] = ..., served_propensity: _Optional[float] = ..., micros: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class ExplorationRecord(_message.Message):
    __slots__ = ("rule", "share", "cost_multiple", "floor", "salt", "deviation_f32")
    RULE_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    COST_MULTIPLE_FIELD_NUMBER: _ClassVar[int]
    FLOOR_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    DEVIATION_F32_FIELD_NUMBER: _ClassVar[int]
    rule: str
    share: float
    cost_multiple: float
    floor: float
    salt: str
    deviation_f32: bytes
    def __init__(self, rule: _Optional[str] = ..., share: _Optional[float] = ..., cost_multiple: _Optional[float] = ..., floor: _Optional[float] = ..., salt: _Optional[str] = ..., deviation_f32: _Optional[bytes] = ...) -> None: ...

class CandidateRecord(_message.Message):
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
    rejected: str
    def __init__(self, offer: _Optional[str] = ..., model: _Optional[str] = ..., p_success: _Optional[float] = ..., output_tokens: _Optional[float] = ..., cost_usd: _Optional[float] = ..., latency_ms: _Optional[float] = ..., rejected: _Optional[str] = ...) -> None: ...

class RequestRecord(_message.Message):
    __slots__ = ("text", "messages", "embedding_f32", "segment", "session_id", "tenant", "constraints", "quality_target", "min_success_probability", "input_tokens", "cached_input_tokens", "batch", "digest", "withheld")
    class CachedInputTokensEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    TEXT_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_F32_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINTS_FIELD_NUMBER: _ClassVar[int]
    QUALITY_TARGET_FIELD_NUMBER: _ClassVar[int]
    MIN_SUCCESS_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    WITHHELD_FIELD_NUMBER: _ClassVar[int]
    text: str
    messages: str
    embedding_f32: bytes
    segment: str
    session_id: str
    tenant: str
    constraints: ConstraintsRecord
    quality_target: float
    min_success_probability: float
    input_tokens: int
    cached_input_tokens: _containers.ScalarMap[str, int]
    batch: bool
    digest: DigestRecord
    withheld: bool
    def __init__(self, text: _Optional[str] = ..., messages: _Optional[str] = ..., embedding_f32: _Optional[bytes] = ..., segment: _Optional[str] = ..., session_id: _Optional[str] = ..., tenant: _Optional[str] = ..., constraints: _Optional[_Union[ConstraintsRecord, _Mapping]] = ..., quality_target: _Optional[float] = ..., min_success_probability: _Optional[float] = ..., input_tokens: _Optional[int] = ..., cached_input_tokens: _Optional[_Mapping[str, int]] = ..., batch: _Optional[bool] = ..., digest: _Optional[_Union[DigestRecord, _Mapping]] = ..., withheld: _Optional[bool] = ...) -> None: ...

class DigestRecord(_message.Message):
    __slots__ = ("prompt_hmac", "embedding_f32", "side_f32", "tokens", "encoder_sha256")
    PROMPT_HMAC_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_F32_FIELD_NUMBER: _ClassVar[int]
    SIDE_F32_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ENCODER_SHA256_FIELD_NUMBER: _ClassVar[int]
    prompt_hmac: str
    embedding_f32: bytes
    side_f32: bytes
    tokens: float
    encoder_sha256: str
    def __init__(self, prompt_hmac: _Optional[str] = ..., embedding_f32: _Optional[bytes] = ..., side_f32: _Optional[bytes] = ..., tokens: _Optional[float] = ..., encoder_sha256: _Optional[str] = ...) -> None: ...

class ConstraintsRecord(_message.Message):
    __slots__ = ("allowed_models", "denied_models", "allowed_regions", "required_capabilities", "max_cost_usd", "max_output_tokens")
    ALLOWED_MODELS_FIELD_NUMBER: _ClassVar[int]
    DENIED_MODELS_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_REGIONS_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    MAX_COST_USD_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    allowed_models: _containers.RepeatedScalarFieldContainer[str]
    denied_models: _containers.RepeatedScalarFieldContainer[str]
    allowed_regions: _containers.RepeatedScalarFieldContainer[str]
    required_capabilities: _containers.RepeatedScalarFieldContainer[str]
    max_cost_usd: float
    max_output_tokens: int
    def __init__(self, allowed_models: _Optional[_Iterable[str]] = ..., denied_models: _Optional[_Iterable[str]] = ..., allowed_regions: _Optional[_Iterable[str]] = ..., required_capabilities: _Optional[_Iterable[str]] = ..., max_cost_usd: _Optional[float] = ..., max_output_tokens: _Optional[int] = ...) -> None: ...

class OutcomeRecord(_message.Message):
    __slots__ = ("decision_id", "time_unix_micros", "offer", "model", "success", "input_tokens", "cached_input_tokens", "output_tokens", "cost_usd", "latency_ms", "ttft_ms", "error")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_UNIX_MICROS_FIELD_NUMBER: _ClassVar[int]
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
    time_unix_micros: int
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
    def __init__(self, decision_id: _Optional[str] = ..., time_unix_micros: _Optional[int] = ..., offer: _Optional[str] = ..., model: _Optional[str] = ..., success: _Optional[float] = ..., input_tokens: _Optional[int] = ..., cached_input_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., cost_usd: _Optional[float] = ..., latency_ms: _Optional[float] = ..., ttft_ms: _Optional[float] = ..., error: _Optional[str] = ...) -> None: ...
