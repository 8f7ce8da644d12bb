"""Where an agent's memories are looked for and put. The model has no say in it."""

from janus_orchestration.model import MemoryPolicy, MemoryScope, RecallScope, Thread


def to_recall(policy: MemoryPolicy, thread: Thread) -> MemoryScope:
    """Whose memories a conversation sees."""
    match policy.recall_scope:
        case RecallScope.SPACE:
            return MemoryScope(policy.space)
        case RecallScope.THREAD:
            return MemoryScope(policy.space, thread.subject, thread.id)
    return MemoryScope(policy.space, thread.subject)


def to_remember(policy: MemoryPolicy, thread: Thread) -> MemoryScope:
    """Where what is remembered is put, so that the conversation sees it again."""
    is_threads = policy.recall_scope is RecallScope.THREAD
    return MemoryScope(policy.space, thread.subject, thread.id if is_threads else "")
