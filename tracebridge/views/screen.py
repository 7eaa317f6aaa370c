"""The lower lines of a terminal, redrawn in place; what stays is written above them.

Only lines that changed are written, in one go, inside the marks by which a terminal shows a frame
whole: no flicker, and little to send over a slow connection.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

# Mode 2026; a terminal that does not know it ignores it.
FRAME_BEGINS, FRAME_ENDS = "\x1b[?2026h", "\x1b[?2026l"
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
ERASE_TO_END_OF_LINE, ERASE_BELOW = "\x1b[K", "\x1b[J"


class Screen:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: list[str] = []
        self._widths: list[int] = []
        self._size = (console.width, console.height)
        self._cursor_hidden = False

    @property
    def width(self) -> int:
        # A letter in the last column makes some terminals wrap.
        return max(self._console.width - 1, 1)

    @property
    def height(self) -> int:
        """Return how many lines stay in view; the cursor stands below them."""
        return max(self._console.height - 1, 1)

    def show(self, lines: Sequence[Text], above: Sequence[Text] = ()) -> None:
        """Show *lines* at the bottom, and *above* them, once and for good, what is done."""
        lines = lines[: self.height]
        drawn = [self._ansi(line) for line in lines]
        output = self._up()
        if above:
            output += "".join(f"{self._ansi(text)}{ERASE_TO_END_OF_LINE}\n" for text in above)
            self._shown = []
        size = (self._console.width, self._console.height)
        if not above and self._shown == drawn and self._size == size:
            return
        for number, line in enumerate(drawn):
            if number < len(self._shown) and self._shown[number] == line:
                output += "\n"
            else:
                output += f"{line}{ERASE_TO_END_OF_LINE}\n"
        self._shown, self._widths = drawn, [cell_len(line.plain) for line in lines]
        self._size = size
        self._write(output + ERASE_BELOW)

    def close(self) -> None:
        """Take the lines away and give the cursor back."""
        output = self._up() + ERASE_BELOW
        self._shown, self._widths = [], []
        self._write(output)
        if self._cursor_hidden:
            self._console.file.write(SHOW_CURSOR)
            self._console.file.flush()

    def _up(self) -> str:
        """Return what leads from below the lines to the first of them."""
        rows = len(self._shown)
        if self._size[0] != self._console.width:
            # The terminal has wrapped what no longer fits; all is drawn anew.
            width = max(self._console.width, 1)
            rows = min(sum(max(-(-cells // width), 1) for cells in self._widths), self.height)
            self._shown = []
            return (f"\x1b[{rows}A" if rows else "") + "\r" + ERASE_BELOW
        return (f"\x1b[{rows}A" if rows else "") + "\r"

    def _ansi(self, text: Text) -> str:
        with self._console.capture() as captured:
            self._console.print(text, end="", soft_wrap=True)
        return captured.get()

    def _write(self, output: str) -> None:
        hide = "" if self._cursor_hidden else HIDE_CURSOR
        self._cursor_hidden = True
        self._console.file.write(FRAME_BEGINS + hide + output + FRAME_ENDS)
        self._console.file.flush()
