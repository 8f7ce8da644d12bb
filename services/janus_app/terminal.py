"""What is shown on a terminal. What people and models wrote is shown as it is: no markup, no control characters."""

from __future__ import annotations

import json
import sys
import unicodedata

from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.text import Text

from janus_api.orchestration.v1 import agent_pb2


def print_json(message: Message) -> None:
    """A message as one JSON text, for programs."""
    text = json.dumps(json_format.MessageToDict(message, preserving_proto_field_name=True), ensure_ascii=False)
    sys.stdout.write(f"{text}\n")


def plain(text: str) -> Text:
    """A text with nothing in it that a terminal would act on."""
    return Text("".join(character if _is_shown(character) else "�" for character in text))


def decision_word(decision: agent_pb2.ApprovalDecision.ValueType) -> str:
    """`approved` or `declined`."""
    return agent_pb2.ApprovalDecision.Name(decision).removeprefix("APPROVAL_DECISION_").lower()


def when(stamp: Timestamp) -> str:
    """A time to the second, in UTC; empty for one that is not set."""
    return f"{stamp.ToDatetime():%Y-%m-%d %H:%M:%S}" if stamp.seconds or stamp.nanos else ""


def _is_shown(character: str) -> bool:
    return character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs")
