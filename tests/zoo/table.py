"""Which road each family takes: the table in docs/models.md. `python tests/zoo/table.py` writes it anew."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "models.md"
BEGIN = "<!-- the families, written by tests/zoo/table.py -->"
END = "<!-- end of the families -->"


def family_rows(page: str) -> list[str]:
    """Names of the variants in the page's table, in order."""
    return re.findall(r"^\| `([^`]+)` \|", page.partition(BEGIN)[2].partition(END)[0], re.MULTILINE)


def write_table() -> None:
    """Judge every model of the zoo, as policy and as scorer, and put what was found into the page."""
    sys.path.insert(0, str(ROOT))
    from families import VARIANTS, Variant

    from core.models.judge import judge
    from core.models.roles import ScoreModel, TokenModel

    def road(variant: Variant, scorer: bool) -> str:
        module = variant.model(scorer=scorer)
        model = (ScoreModel if scorer else TokenModel)(module).eval()
        judge(model, 64)
        return re.sub(r" by [\d.e+-]+ (nats a token|in the score)", "", model.road.title)

    rows = ["| model | policy | scorer |", "|---|---|---|"]
    for variant in VARIANTS:
        policy, scorer = road(variant, False), road(variant, True)
        same = policy.partition(":")[0] == scorer.partition(":")[0]
        rows.append(f"| `{variant.name}` | {policy} | {'the same' if same else scorer} |")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n" + "\n".join(rows) + f"\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    write_table()
