"""What each caller has used since the server's start. A metric may read it at any time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

_MAX_CALLERS = 1000
_OTHERS = "(others)"


@dataclass(slots=True)
class Used:
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    forward_passes: int = 0


@dataclass(frozen=True, slots=True)
class _Account:
    used: Used
    prompt_tokens: int
    settle: Callable[[int], None]


class Usage:
    """Counters by caller's name; with very many names the last ones share one entry."""

    def __init__(self) -> None:
        self._used: dict[str, Used] = {}
        self._open: dict[int, _Account] = {}

    @property
    def callers(self) -> Mapping[str, Used]:
        return self._used

    def begin(
        self, key: int, caller: str, prompt_tokens: int, settle: Callable[[int], None]
    ) -> None:
        """A request enters the engine. settle: is told the tokens that it has used in the end."""
        if caller not in self._used and len(self._used) >= _MAX_CALLERS:
            caller = _OTHERS
        used = self._used.setdefault(caller, Used())
        used.requests += 1
        used.prompt_tokens += prompt_tokens
        self._open[key] = _Account(used, prompt_tokens, settle)

    def end(self, key: int, completion_tokens: int, forward_passes: int) -> None:
        """What the engine has done for it. Told once; unknown keys are ignored."""
        account = self._open.pop(key, None)
        if account is not None:
            account.used.completion_tokens += completion_tokens
            account.used.forward_passes += forward_passes
            account.settle(account.prompt_tokens + completion_tokens)

    def lose(self) -> None:
        """The engine has died: what it had done for the open ones is not known."""
        self._open.clear()
