"""Files and texts that the corpus tests make, and how they read what a stage wrote."""

import json
import random
from pathlib import Path

import zstandard

STORY = (
    "في صباح كل يوم تخرج المعلمة من بيتها القريب من النهر وتمشي إلى المدرسة على قدميها، لأنها تحب أن ترى الحقول قبل أن "
    "تبدأ الدروس. وقد اعتاد أهل القرية أن يحيوها من نوافذهم، ثم يسألونها عن أبنائهم وعن الكتب التي وصلت هذا الأسبوع."
)
LIBRARY = (
    "تقع المكتبة العامة في وسط المدينة القديمة، وهي تضم آلاف المخطوطات التي جمعها العلماء عبر القرون. ويزورها الباحثون "
    "من بلدان كثيرة لكي يطلعوا على خزائنها، ويعمل فيها مرممون تعلموا هذه الصنعة الدقيقة على أيدي أساتذة كبار."
)
ENGLISH = (
    "The old harbour wakes before the sun, and the boats that went out at night return with their lights still on. The "
    "men carry the baskets to the market, where the first buyers have been waiting for an hour with a cup of tea."
)
_WORDS = (STORY + " " + LIBRARY).replace("،", "").replace(".", "").split()


def arabic_text(seed: int, words: int = 60) -> str:
    """Arabic words in an order of their own for every seed."""
    return " ".join(random.Random(seed).choices(_WORDS, k=words))


def write_jsonl(path: Path, records: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def read_part(path: Path) -> list[dict]:
    raw = zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes())
    return [json.loads(line) for line in raw.decode("utf-8").split("\n")[:-1]]


def part_bytes(folder: Path) -> dict[str, bytes]:
    """Every document file of a stage folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.jsonl.zst"))}
