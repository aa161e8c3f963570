"""The file `metrics.jsonl` of a run: one `RoundRecord` per line.

Lines are only appended, or truncated to the rounds of a checkpoint. A digest of everything written is stored in each
checkpoint, so that a resumed run can verify that earlier lines have not changed.
"""

import json
from pathlib import Path

from devft_jax.errors import InputError
from devft_jax.files import parse_json, read_text, write_atomically
from devft_jax.storage.digests import Mark, new_digest
from devft_jax.storage.records import RoundRecord
from devft_jax.storage.saving import saving

METRICS_FILE = "metrics.jsonl"


class Metrics:
    """Reads and writes the metrics of a run.

    Args:
      folder: the run's folder.

    Attributes:
      path: path of the file.
    """

    def __init__(self, folder: Path):
        self.path = folder / METRICS_FILE
        self._digest, self._bytes = new_digest(), 0

    @property
    def mark(self) -> Mark:
        """Size and digest of what this process has written or kept."""
        return {"bytes": self._bytes, "digest": self._digest.hexdigest()}

    def append(self, row: RoundRecord) -> None:
        """Add a round's line; raises RunError if that fails."""
        line = json.dumps(row.to_plain()) + "\n"
        with saving(self.path.parent, METRICS_FILE), open(self.path, "a", encoding="utf-8") as lines:
            lines.write(line)
        self._count(line)

    def read(self) -> list[RoundRecord]:
        """All lines; an incomplete last line, left by a killed process, is skipped.

        Raises:
          InputError: the file or another line of it cannot be read.
        """
        return self.read_so_far()[0]

    def read_so_far(self) -> tuple[list[RoundRecord], bool]:
        """Like `read`, and whether the last line is incomplete: it is being written, or the process was killed."""
        lines, incomplete = self._lines()
        return [row for _, row in lines], incomplete

    def cut(self, rounds: int) -> list[RoundRecord]:
        """Keep only the lines of the first `rounds` rounds, unchanged, and return their records."""
        lines, _ = self._lines()
        kept = [(line, row) for line, row in lines if row.round <= rounds]
        text = "".join(f"{line}\n" for line, _ in kept)
        with saving(self.path.parent, METRICS_FILE):
            write_atomically(self.path, text)
        self._digest, self._bytes = new_digest(), 0
        self._count(text)
        return [row for _, row in kept]

    def _lines(self) -> tuple[list[tuple[str, RoundRecord]], bool]:
        """The lines with their records, and whether the last line is incomplete."""
        if not self.path.exists():
            return [], False
        lines = read_text(self.path).splitlines()
        found: list[tuple[str, RoundRecord]] = []
        for number, line in enumerate(lines, 1):
            try:
                plain = parse_json(line, str(self.path), number)
            except InputError:
                if number == len(lines):
                    return found, True
                raise
            record = RoundRecord.from_plain(plain, self.path.parent, f"line {number} of {METRICS_FILE}")
            found.append((line, record))
        return found, False

    def _count(self, text: str) -> None:
        content = text.encode()
        self._digest.update(content)
        self._bytes += len(content)
