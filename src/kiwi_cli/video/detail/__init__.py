"""The source's own detail in the result: what the model's size and its autoencoder lost is given back, full size.

    result = enlarged(E) + A (s - enlarged(R))

`E` is the edited frame and `R` the source as the autoencoder gives it back, both at the working size; `s` is the source
at full size. `s - enlarged(R)` is the detail that was lost on the way, and the local colour map `A` turns it into the
edit's light and colours (maps.py). Because `E` and `R` carry the same blur, `A` is as strong as the edit really is.
Where the edit has nothing to do with the source, `A` is zero and the result is the plain enlargement; where nothing was
changed, the source's pixels stand. docs/detail.md has the measurements.

Knows no model. `import kiwi_cli.video` does not import this room: it needs torch.
"""

from kiwi_cli.video.detail.settings import DetailSettings
from kiwi_cli.video.detail.stream import Detail, Triple, transfer

__all__ = ["Detail", "DetailSettings", "Triple", "transfer"]
