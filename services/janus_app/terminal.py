"""What is shown on a terminal. What people and models wrote is shown as it is: no markup, no control characters."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from janus_api.orchestration.v1 import agent_pb2


def print_json(message: Message) -> None:
    """A message as one JSON text, for programs."""
    text = json.dumps(json_format.MessageToDict(message, preserving_proto_field_name=True), ensure_ascii=False)
    sys.stdout.write(f"{text}\n")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. ``left_out``: the highest goes first where a terminal is too narrow; 0 stays."""

    name: str
    right: bool = False
    folds: bool = False
    left_out: int = 0


_GAP = 2
# A column that folds is no narrower than can be read, and than its words, unless they are very long.
_NARROWEST, _LONGEST_WORD = 20, 32
# Of letters and emoji: nothing is shown for them, and they tell a terminal nothing.
_JOINERS = "\u200c\u200d"


def print_table(console: Console, columns: Sequence[Column], rows: Sequence[Sequence[Text]]) -> None:
    """Nothing in it is ever cut: ids and names are there to be copied.

    On a terminal, columns that fold share what is left, and columns are left
    out where that is not enough. For a pipe or a file a row is a line.
    """
    rows = [[_laid_out(console, cell) for cell in row] for row in rows]
    full = [max(_widths(cells), default=0) for cells in _columns(columns, rows)]
    least = list(full)
    for place, column in enumerate(columns):
        if column.folds:
            words = Text(" ").join(_columns(columns, rows)[place]).plain.split()
            least[place] = min(full[place], _LONGEST_WORD, max([_NARROWEST, *map(cell_len, words)]))
    shown = list(range(len(columns)))
    spare = sum(full)
    if console.is_terminal:
        for place in sorted(shown, key=lambda each: -columns[each].left_out):
            spare = console.width - sum(least[each] + _GAP for each in shown) + _GAP
            if spare >= 0 or not columns[place].left_out:
                break
            shown.remove(place)
    table = Table(box=None, header_style="bold", pad_edge=False)
    total = -_GAP
    for place in shown:
        more = min(max(spare, 0), full[place] - least[place])
        spare -= more
        column, width = columns[place], least[place] + more
        total += width + _GAP
        justify, overflow = "right" if column.right else "left", "fold"
        table.add_column(column.name, justify=justify, overflow=overflow, width=width)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(row[place] for place in shown))
    # Else the table is squeezed into what the console has.
    table.width = total
    console.print(table, crop=False)


def print_facts(console: Console, facts: Iterable[tuple[str, Text]]) -> None:
    """A name and a value each. Nothing is cut; on a terminal, long values fold."""
    rows = [(Text(name), _expanded(console, value)) for name, value in facts]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    if not console.is_terminal:
        table.width = sum(max(_widths(cells), default=0) for cells in zip(*rows, strict=True)) + _GAP
    console.print(table, crop=False)


def _laid_out(console: Console, cell: Text) -> Text:
    """A cell of a table as wide as it is shown; outside of terminals a line."""
    line = cell if console.is_terminal else Text(" ").join(cell.split("\n"))
    return _expanded(console, line)


def _expanded(console: Console, text: Text) -> Text:
    """Without tabs, whose width depends on where they stand."""
    copy = text.copy()
    copy.expand_tabs(console.tab_size)
    return copy


def _columns(columns: Sequence[Column], rows: Sequence[Sequence[Text]]) -> list[list[Text]]:
    """All texts of each column, its name first."""
    return [[Text(column.name), *(row[place] for row in rows)] for place, column in enumerate(columns)]


def _widths(cells: Sequence[Text]) -> list[int]:
    return [cell_len(line) for cell in cells for line in cell.plain.split("\n")]


def plain(text: str) -> Text:
    """A text with nothing in it that a terminal would act on."""
    return Text("".join(character if _is_shown(character) else "�" for character in text))


def spoken(text: str) -> str:
    """What somebody said, without what a terminal would act on; letters and emoji stay joined."""
    return "".join(each if each in _JOINERS or _is_shown(each) else "�" for each in text)


def decision_word(decision: agent_pb2.ApprovalDecision.ValueType) -> str:
    """`approved` or `declined`."""
    return agent_pb2.ApprovalDecision.Name(decision).removeprefix("APPROVAL_DECISION_").lower()


def when(stamp: Timestamp) -> str:
    """A time to the second, in UTC; empty for one that is not set."""
    return f"{stamp.ToDatetime():%Y-%m-%d %H:%M:%S}" if stamp.seconds or stamp.nanos else ""


def _is_shown(character: str) -> bool:
    return character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs")
