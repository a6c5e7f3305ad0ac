"""Takes docs/playground.png: the playground half way through a comparison, from a running gateway.

python -m docs.make_playground --url http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image

from tests.gateway.browser import Tab, chromium

SIZE = {"width": 1240, "height": 880}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--moment", type=int, default=12)
    arguments = parser.parse_args()
    with chromium() as browser:
        tab = Tab(browser, arguments.url, viewport=SIZE)
        tab.open()
        tab.fill(prompt="Once upon a time", seed="7", max_tokens="48")
        tab.page.select_option("[name='a.type']", "confidence_threshold")
        tab.fill(**{"a.threshold": "0.5"})
        tab.page.check("[name=compare]")
        tab.page.select_option("[name='b.type']", "fixed_schedule")
        tab.run()
        tab.page.locator("#moment").fill(str(arguments.moment))
        tab.page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
        picture = Image.open(io.BytesIO(tab.page.screenshot())).convert("RGB")
        tab.close()
    # All but equal (10 of 255 at most), at a third of the size.
    picture = picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=4, dither=Image.Dither.NONE)
    picture.save(Path(__file__).with_name("playground.png"), optimize=True)


if __name__ == "__main__":
    main()
