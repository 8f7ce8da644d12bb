"""Settings of the memory service: section `memory`, environment `JANUS_MEMORY__…`."""

from typing import Literal

from pydantic import Field, SecretStr

from janus_kit.settings import Seconds, Settings


class MemorySettings(Settings):
    """How memory is kept and searched."""

    chroma_url: str | None = None
    """HTTP address of a Chroma server; unset: spaces with the chroma backend cannot be made."""
    inference_target: str | None = None
    """gRPC target of the inference service, which embeds with models; unset: built-in embedder only."""
    default_backend: Literal["pgvector", "chroma"] = "pgvector"
    """Where vectors of a new space live when its maker does not say."""
    default_embedding_model: str = "janus/lexical-v1"
    """Embedding model of a new space when its maker does not say."""
    default_dimensions: int = Field(default=0, ge=0, le=4096)
    """Dimensions that go with it; 0: the model's."""
    onnx_dir: str | None = None
    """Directory whose folders are the embedding models `onnx/<folder>`; unset: there are none."""
    onnx_threads: int = Field(default=0, ge=0, le=256)
    """Threads that such a model computes with; 0: half as many as there are processors."""
    window_turns: int = Field(default=400, ge=1, le=10_000)
    """Newest turns of a thread that Redis keeps."""
    window_ttl_s: int = Field(default=7 * 86_400, ge=1)
    """How long Redis keeps a thread's window after its last use."""
    dense_timeout_s: Seconds = 2.0
    """Longest wait of a recall for embedding and vector search; then it is degraded."""
    resident_mib: int = Field(default=256, ge=0, le=1 << 20)
    """Memory, in MiB, for vectors in pgvector of the spaces that are searched most; 0: all are searched in Postgres."""
    chroma_timeout_s: Seconds = 10.0
    """Longest wait for one answer of Chroma when indexing."""
    embed_timeout_s: Seconds = 10.0
    """Longest wait for one answer of an embedding model when indexing."""
    receipt_key: SecretStr | None = None
    """Ed25519 key that receipts of erasures are signed with: PEM, or the base64 of its 32 bytes.
    Unset: each tenant has its own in Postgres, made with its first erasure."""
    reconcile_every_s: float = Field(default=86_400, ge=0, le=31 * 86_400)
    """How often each space's indexes are compared with its records, and repaired; 0: never."""
    summary_model: str = Field(default="", max_length=256)
    """Alias or `provider/model` of the inference service that writes summaries; empty: they are extracted."""
    summary_keep_turns: int = Field(default=16, ge=4, le=1_000)
    """Newest turns of a thread that its summary leaves out."""
    summary_step_turns: int = Field(default=16, ge=1, le=1_000)
    """Turns beyond those after which the summary goes on."""
    summary_max_chars: int = Field(default=2_000, ge=200, le=16_000)
    """Longest summary."""
    summary_timeout_s: Seconds = 60.0
    """Longest wait for one answer of the summary model."""
    summary_poll_s: Seconds = 5.0
    """How often a worker looks for threads that have grown; less often, up to a minute, where looking takes long."""
    extraction_model: str = Field(default="", max_length=256)
    """Alias or `provider/model` of the inference service that Extract asks when its caller names none."""
    extraction_timeout_s: Seconds = 120.0
    """Longest wait of an extraction for one answer."""
    summariser: bool = True
    """Whether this process keeps summaries."""
    indexer: bool = True
    """Whether this process works off the outbox."""
    indexer_poll_s: Seconds = 1.0
    """How often the indexer looks without being woken."""
    sweep_every_s: Seconds = 60.0
    """How often expired memories are counted out, and what is older than its space's retention is removed."""
    retire_after_s: Seconds = 10.0
    """How long a space's old vectors stay after a Reindex: more than `dense_timeout_s`, for recalls that read them."""
    operations: bool = True
    """Whether this process works on long-running operations."""
    operations_at_once: int = Field(default=4, ge=1, le=64)
    """How many of them at the same time; those without progress for 5 s do not count, up to 16 of them."""
