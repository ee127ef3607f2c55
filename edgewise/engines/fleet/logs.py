"""Logs for machines: a line is one JSON object, with the time, the event and what belongs to it."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path

from edgewise.errors import EdgewiseError

FIELDS = ("device", "round", "peer", "words")
LONGEST = 500  # letters of a text: some of it comes from the network


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        row = {"at": at, "level": record.levelname.lower(), "from": record.name, "event": record.getMessage()}
        for name in FIELDS:
            if (value := getattr(record, name, None)) is not None:
                row[name] = value[:LONGEST] if isinstance(value, str) else value
        if record.exc_info:
            row["trace"] = self.formatException(record.exc_info)
        return json.dumps(row)


def log_to(path: Path | None) -> None:
    """Write edgewise's log to a file, at its end, or to stderr (None or `-`). Files may be rotated away."""
    handler: logging.Handler
    try:
        if path is None or str(path) == "-":
            handler = logging.StreamHandler(sys.stderr)
        else:
            handler = WatchedFileHandler(path)
    except OSError as error:
        raise EdgewiseError(f"--log {path}: cannot be written ({error.strerror})") from None
    handler.setFormatter(_Lines())
    logger = logging.getLogger("edgewise")
    for old in logger.handlers:
        old.close()
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logging.raiseExceptions = False  # a full disk is no reason to fill stderr
