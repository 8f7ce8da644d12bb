"""Wire formats: pure functions and small state machines from prompts to bodies and from bytes to events."""
