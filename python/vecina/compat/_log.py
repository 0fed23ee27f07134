# SPDX-License-Identifier: MIT
"""``natten.utils.log``: loggers that read NATTEN_LOG_LEVEL and NATTEN_LOG_PIPE."""

from __future__ import annotations

import enum
import logging
import os
import sys

import torch


class LogLevel(enum.Enum):
    Default = 0
    Debug = 1
    Info = 2
    Warnings = 3
    Errors = 4
    Critical = 5


_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}


def _get_log_pipe():
    """sys.stdout, sys.stderr, the path of a file that can be written, or None."""
    pipe = os.environ.get("NATTEN_LOG_PIPE", "stdout")
    if pipe.lower() in ("stdout", "stderr"):
        return getattr(sys, pipe.lower())
    if pipe == os.devnull:
        return None
    try:
        open(pipe, "a").close()
    except OSError:
        return None
    return pipe


class NattenLogger:
    """Writes where and what the environment says; nothing while torch.compile traces."""

    def __init__(self, name: str):
        pipe = _get_log_pipe()
        if pipe is None:
            self.handler: logging.Handler = logging.NullHandler()
        else:
            kind = logging.FileHandler if isinstance(pipe, str) else logging.StreamHandler
            self.handler = kind(pipe)
        self.log_level = _LEVELS.get(os.environ.get("NATTEN_LOG_LEVEL", "").lower(), logging.INFO)
        self.logger = logging.getLogger(name)
        self.logger.setLevel(self.log_level)
        self.handler.setLevel(self.log_level)
        self.handler.setFormatter(
            logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s")
        )
        self.logger.addHandler(self.handler)

    def is_safe_to_log(self) -> bool:
        return not torch.compiler.is_compiling()

    def _log(self, level: int, *args, **keywords) -> None:
        if self.is_safe_to_log():
            self.logger.log(level, *args, **keywords)

    def debug(self, *args, **keywords) -> None:
        self._log(logging.DEBUG, *args, **keywords)

    def info(self, *args, **keywords) -> None:
        self._log(logging.INFO, *args, **keywords)

    def warning(self, *args, **keywords) -> None:
        self._log(logging.WARNING, *args, **keywords)


def get_logger(name: str) -> NattenLogger:
    return NattenLogger(name)
