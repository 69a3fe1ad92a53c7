"""What a run looks like on a terminal of so many columns and rows: the lines of steps that are done, and the block of
those that run. Pure functions; console/live.py draws it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple, Optional

from console.columns import columns, cut, pad, wrap
from console.figures import Running, amount_text, disk_percent, duration, left_text, size
from console.language import readable, translate
from console.terminal import Look, printable
from control.conversation import StepResult
from wire.records import DiskProgress, MemoryProgress

# From here on there are columns for command, host, result, seconds and summary; below that one follows another.
WIDE = 72
# The longest command has 22 letters, an IPv4 address 15. The result and the seconds share nine: `ok 0.31 s`.
_COMMAND, _HOST, _SECONDS = 22, 15, 9
# What stands beside a bar: percent, amount, rate and the time left, or just percent and time: `  99 %  1:02:30 h left`.
_FIGURES, _FEW_FIGURES = 59, 23
_LONGEST_BAR, _SHORTEST_BAR = 40, 6
# Progress comes twice a second.
_SILENCE_SECONDS = 5.0


class Paint(Enum):
    """Colours, as the parameter of SGR (ECMA-48, 8.3.117)."""

    NONE = ""
    FAINT = "2"
    RED = "31"
    GREEN = "32"
    YELLOW = "33"
    CYAN = "36"


class Span(NamedTuple):
    """Text of one colour."""

    text: str
    paint: Paint = Paint.NONE


Spans = tuple[Span, ...]


class Signs(NamedTuple):
    """What bars are made of, and what stands for what was left out."""

    full: str
    half: str
    empty: str
    ellipsis: str


_UNICODE = Signs("━", "╸", "─", "…")
_ASCII = Signs("#", "", "-", "...")


class Rank(Enum):
    """How soon a line of the block is left out where there are too few rows for all of them, the first at once."""

    FIGURES = 0
    DISK = 1
    MEMORY = 2
    PHASE = 3
    BAR = 4
    STEP = 5


class _Line(NamedTuple):
    rank: Rank
    spans: Spans


class Figure(NamedTuple):
    """One figure of several, and how much is lost with it if there is no room for all: the least goes first."""

    span: Span
    weight: int


def signs_of(look: Look) -> Signs:
    """The signs that come out on it."""
    return _UNICODE if look.unicode else _ASCII


def room(look: Look) -> int:
    """The columns that are used: a sign in the last one would leave the cursor nowhere."""
    return max(1, look.width - 1)


def rendered(spans: Iterable[Span], look: Look) -> str:
    """The spans as they are written, cut to the width and without colours if none are wanted."""
    found, left = [], room(look)
    for text, paint in spans:
        shown = cut(text, left, signs_of(look).ellipsis)
        left -= columns(shown)
        coloured = look.coloured and paint is not Paint.NONE and shown
        found.append(f"\x1b[{paint.value}m{shown}\x1b[0m" if coloured else shown)
        if shown != text:
            break
    return "".join(found).rstrip(" ")


# Hosts.


def short_host(host: str, others: Iterable[str]) -> str:
    """The end of an address, as much of it as tells it from the others: `.130`."""
    mark = ":" if ":" in host else "."
    parts = host.split(mark)
    ends = {tuple(other.split(mark)) for other in others if other != host}
    length = next((length for length in range(1, len(parts)) if all(
        other[-length:] != tuple(parts[-length:]) for other in ends)), len(parts))
    return host if length == len(parts) else mark + mark.join(parts[-length:])


def _host(host: str, hosts: Sequence[str], look: Look) -> str:
    """The host as there is room for it: whole, its end, or nothing."""
    name = printable(host)
    if look.width >= WIDE and columns(name) <= _HOST:
        return name
    return short_host(name, map(printable, hosts)) if look.width >= WIDE // 3 else ""


# Steps that are done.


def finished_lines(step: StepResult, look: Look, hosts: Sequence[str]) -> list[str]:
    """The lines that stay of a step: all that it says where there is room, else as much of it as one line holds."""
    result = (
        Span(translate("FAILED"), Paint.RED) if step.error is not None else
        Span(translate("BLOCKED"), Paint.RED) if step.obstacles else Span(translate("ok"), Paint.GREEN))
    text = step.error.code.value if step.error is not None else printable(readable(step.summary))
    host, seconds = _host(step.host, hosts, look), _seconds(step.seconds)
    if look.width < WIDE:
        told = _joined([result, *(Span(each) for each in (step.command.value, host, seconds) if each)], " ")
        if text and _length(told) + 1 + columns(text) > room(look):
            return [rendered(told, look), rendered((Span("   " + text),), look)]
        return [rendered((*told, Span(" " + text)), look)]
    place = _SECONDS - columns(seconds) - 1
    head: Spans = (
        Span(f"{pad(step.command.value, _COMMAND)} {pad(host, _HOST)} "), result,
        Span(" " * max(1, place - columns(result.text) + 1) + seconds + "  "))
    first, *more = wrap(text, room(look) - _length(head), room(look) - _COMMAND - 1) or [""]
    return [rendered((*head, Span(first)), look),
            *(rendered((Span(" " * (_COMMAND + 1) + line),), look) for line in more)]


def _seconds(seconds: float) -> str:
    """Three digits are enough: 0.31 s, 12.3 s; beyond that 1:40 min."""
    return f"{seconds:.{2 if seconds < 9.995 else 1}f} s" if seconds < 99.95 else duration(seconds)


def _joined(spans: Sequence[Span], between: str) -> Spans:
    found: list[Span] = []
    for span in spans:
        found += [Span(between), span] if found else [span]
    return tuple(found)


def _length(spans: Iterable[Span]) -> int:
    return sum(columns(span.text) for span in spans)


# Steps that run.


def running_lines(steps: Sequence[Running], look: Look, hosts: Sequence[str]) -> list[str]:
    """The block of what runs: no line is wider than the terminal, and it leaves at least one row of that."""
    lines = [line for step in steps for line in _step_lines(step, look, hosts)]
    rows = max(1, look.height - 1)
    while len(lines) > rows:
        rank = min((line.rank for line in lines), key=lambda each: each.value)
        last = max(place for place, line in enumerate(lines) if line.rank is rank)
        del lines[last]
    return [rendered(line.spans, look) for line in lines]


class _Places(NamedTuple):
    """What begins where in the lines of a step: its bars, how long they are, and how wide names and figures get."""

    indent: int
    bar: int
    target: int = 0
    amount: int = 0
    rate: int = 0


def _places(step: Running, look: Look) -> _Places:
    if look.width < WIDE:
        places = _Places(1, _bar_length(look, _FEW_FIGURES))
    else:
        places = _Places(2, _bar_length(look, _FIGURES))
    progress = step.progress
    if progress is None or not progress.disks:
        return places
    target = max(columns(printable(disk.target)) for disk in progress.disks)
    if look.width < WIDE:
        return places._replace(target=target)
    amounts = [amount_text(progress.done, progress.total), *(_amount(disk) for disk in progress.disks)]
    rates = [_rate(step.rate), *(_rate(step.disk_rate(disk)) for disk in progress.disks)]
    return places._replace(target=target, amount=max(map(columns, amounts)), rate=max(map(columns, rates)))


def _bar_length(look: Look, figures: int) -> int:
    return max(_SHORTEST_BAR, min(_LONGEST_BAR, room(look) - figures))


def _amount(disk: DiskProgress) -> str:
    return amount_text(disk.done, disk.total) if disk.total else ""


def _rate(rate: float) -> str:
    return f"{size(rate)}/s" if rate else ""


def _step_lines(step: Running, look: Look, hosts: Sequence[str]) -> list[_Line]:
    """One step: what and where it is, its bar, its disks, and how its memory goes."""
    places = _places(step, look)
    lines = _head(step, places, look, hosts)
    progress = step.progress
    if progress is None:
        return lines
    below = room(look) - places.indent
    if progress.total:
        head = (Span(" " * places.indent), *_bar(step.percent, places.bar, look))
        first, *more = _flow(_figures(step, places, look), room(look) - _length(head) - 2, below, look)
        lines.append(_Line(Rank.BAR, (*head, *_indented(first, 2))))
        lines += [_Line(Rank.FIGURES, _indented(line, places.indent)) for line in more]
    lines += _disk_lines(step, places, look)
    if progress.memory is not None:
        told = _flow(_memory_figures(progress.memory), below, below, look)
        lines += [_Line(Rank.MEMORY, _indented(line, places.indent)) for line in told if line]
    return lines


def _head(step: Running, places: _Places, look: Look, hosts: Sequence[str]) -> list[_Line]:
    """The step, the host, for how long, and its phase there if there is room, else below."""
    host, time = _host(step.host, hosts, look), duration(step.seconds)
    phase = printable(readable(step.progress.phase)) if step.progress is not None else ""
    if look.width >= WIDE:
        head = f" {pad(step.command.value, _COMMAND)}{pad(host, _HOST)} {time:>{_SECONDS}}"
    else:
        head = " " + " ".join(each for each in (step.command.value, host, time) if each)
    # The first column is the cursor's.
    if phase and columns(head) + 2 + columns(phase) <= room(look):
        return [_Line(Rank.STEP, (Span(f"{head}  {phase}"),))]
    below = wrap(phase, room(look) - places.indent, room(look) - places.indent)
    return [_Line(Rank.STEP, (Span(head),)),
            *(_Line(Rank.PHASE, (Span(" " * places.indent + line),)) for line in below)]


def _bar(percent: int, length: int, look: Look) -> Spans:
    """A bar with its percentage, which never has three digits."""
    signs = signs_of(look)
    halves = 2 * length * percent // 100
    full = signs.full * (halves // 2) + (signs.half if halves % 2 else "")
    return (Span(full, Paint.CYAN), Span(signs.empty * (length - len(full)), Paint.FAINT), Span(f"  {percent:>2} %"))


def _figures(step: Running, places: _Places, look: Look) -> list[Figure]:
    """What stands beside its bar; on few columns the most important first."""
    if step.progress is None:
        return []
    memory, left = step.progress.memory, step.seconds_left
    figures = [Figure(Span(_right(amount_text(step.progress.done, step.progress.total), places.amount)), 1)]
    trouble = (
        translate("no news for {time}").format(time=duration(step.silent)) if step.silent >= _SILENCE_SECONDS else
        translate("nothing is moving") if step.stalled else "")
    if trouble:
        return [*figures, Figure(Span(trouble, Paint.YELLOW), 3)]
    if step.rate and (memory is None or memory.rate is None):
        figures.append(Figure(Span(_right(_rate(step.rate), places.rate)), 2))
    if left is not None:
        figures.append(Figure(Span(left_text(left)), 3))
    return figures if look.width >= WIDE else sorted(figures, key=lambda figure: -figure.weight)


def _right(text: str, width: int) -> str:
    """The text with blanks before it, so that figures stand below each other."""
    return " " * (width - columns(text)) + text


def _memory_figures(memory: MemoryProgress) -> list[Figure]:
    """How the copying of memory goes, and in post-copy that there is no way back."""
    figures = [
        Figure(Span(translate("pass {number}").format(number=memory.passes)), 2),
        Figure(Span(translate("{size} left").format(size=size(memory.left))), 4)]
    if memory.rate is not None:
        figures.append(Figure(Span(f"{size(memory.rate)}/s"), 1))
    if memory.post_copy:
        return [Figure(Span(translate("post-copy"), Paint.YELLOW), 5), *figures[1:]]
    if memory.dirty_rate is not None:
        words = translate("guest writes {rate}/s").format(rate=size(memory.dirty_rate))
        figures.append(Figure(Span(words), 3))
    words = translate("downtime limit {time} ms").format(time=memory.downtime_limit)
    return [*figures, Figure(Span(words), 0)]


def _disk_lines(step: Running, places: _Places, look: Look) -> list[_Line]:
    """A line for each disk; of many on few rows those that are not there yet."""
    disks = step.progress.disks if step.progress is not None else ()
    rows = max(2, look.height - 3)
    hidden = len(disks) - rows + 1 if len(disks) > rows else 0
    if hidden:
        disks = tuple(sorted(disks, key=lambda disk: disk_percent(disk) >= 99))[:rows - 1]
    lines = [_Line(Rank.DISK, _disk_line(step, disk, places, look)) for disk in disks]
    if hidden:
        words = translate("and {number} more disks").format(number=hidden)
        lines.append(_Line(Rank.DISK, (Span(" " * places.indent + words),)))
    return lines


def _disk_line(step: Running, disk: DiskProgress, places: _Places, look: Look) -> Spans:
    """Its bar ends where the step's own does, and its figures stand below those of the step."""
    length = max(_SHORTEST_BAR, places.bar - places.target - 1)
    before = (Span(" " * places.indent + pad(printable(disk.target), places.target) + " "),
              *_bar(disk_percent(disk), length, look))
    figures = [Figure(Span(_right(text, width)), weight) for text, width, weight in (
        (_amount(disk) if look.width >= WIDE else "", places.amount, 1),
        (_rate(step.disk_rate(disk)), places.rate, 2)) if text]
    return (*before, *_indented(_flow(figures, room(look) - _length(before) - 2, 0, look)[0], 2))


def _indented(spans: Spans, by: int) -> Spans:
    return (Span(" " * by), *spans) if spans else ()


def _flow(figures: Sequence[Figure], first: int, others: int, look: Look) -> list[Spans]:
    """The figures in one line of so many columns, or in two where there are few; two blanks between them.

    What does not fit is left out, the least first. There is one line at least.
    """
    widths = [first] if look.width >= WIDE else [first, others]
    kept = list(figures)
    while (found := _placed(kept, widths)) is None:
        kept.remove(min(kept, key=lambda figure: figure.weight))
    return found


def _placed(figures: Sequence[Figure], widths: Sequence[int]) -> Optional[list[Spans]]:
    """The figures in lines of these widths; None if they do not fit."""
    lines: list[list[Span]] = [[]]
    for figure in figures:
        while _length(_joined([*lines[-1], figure.span], "  ")) > widths[len(lines) - 1]:
            if len(lines) == len(widths):
                return None
            lines.append([])
        lines[-1].append(figure.span)
    return [_joined(line, "  ") for line in lines]
