"""Looking before an edit is made: the options of a preview."""

from __future__ import annotations

from dataclasses import dataclass

from kiwi_cli.base.option import RUN, option
from kiwi_cli.errors import UsageError

MOST_SEEDS = 16


@dataclass(frozen=True)
class Previewing:
    """What is only looked at.

    Attributes:
        preview: moments of the clip, source and edit. seeds: so many edits of a moment, from the request's seed on.
    """

    preview: bool = option(
        False,
        "--preview",
        "Only write 'NAME-preview.png': moments of the clip above what becomes of them, small and in few steps; and "
        "say how long the whole takes.",
        RUN,
    )
    seeds: int | None = option(
        None,
        "--seeds",
        f"Only write 'NAME-seeds.png': one moment with N seeds (up to {MOST_SEEDS}) from --seed on, to pick one; with "
        "--preview, its three moments.",
        RUN,
        unit="N",
    )

    @property
    def asked(self) -> bool:
        """Whether the edit itself is not to be made."""
        return self.preview or self.seeds is not None

    @property
    def flag(self) -> str:
        """The option that asks for it."""
        return "--preview" if self.preview else "--seeds"

    @property
    def name(self) -> str:
        """What the sheet's name has after the output's."""
        return "preview" if self.preview else "seeds"

    def check(self, seed: int) -> None:
        """Refuse invalid values, whatever the files hold.

        Args:
            seed: the first one.

        Raises:
            UsageError: no number of seeds that a sheet shows.
        """
        if self.seeds is None:
            return
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise UsageError(
                f"--seeds is a number from 1 to {MOST_SEEDS}, not {self.seeds}",
                "pass --seeds 4; --seed N is the one that an edit is made with",
            )
        if seed + self.seeds > 2**64:
            raise UsageError(
                f"--seeds {self.seeds} from --seed {seed} on: seeds end at {2**64 - 1}", "pass a lower --seed"
            )

    def check_alone(self) -> None:
        """Refuse a preview beside a dry run, which makes nothing.

        Raises:
            UsageError: one is asked for.
        """
        if self.asked:
            raise UsageError(
                f"{self.flag} does not go together with --dry-run", "--dry-run alone says what would be done"
            )
