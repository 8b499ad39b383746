"""Documents go to the bucket of their language and of their kind of Arabic; the sentences here set no threshold."""

import json
import os
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from megatron_native.corpus.folding import WordFolder, fold
from megatron_native.corpus.languages import LanguageIdentifier, _count, _dialects
from tests.corpus.corpus_files import ENGLISH, LIBRARY, STORY

IDENTIFIER = LanguageIdentifier()
DIALECTS = {
    "egyptian": [
        "أنا مش عارف أعمل إيه النهارده، الجو حر أوي وكل صحابي مسافرين",
        "إزيك يا صاحبي؟ عامل إيه؟ وحشتني والله من زمان ماشوفتكش",
        "هو الأتوبيس ده بيروح فين؟ أنا عايز أوصل وسط البلد بسرعة",
        "ماما عملت محشي النهارده وكان طعمه حلو أوي",
        "ليه كده؟ كان لازم تقول لي قبل ما تمشي عشان استناك",
        "احنا رايحين السينما بكره، تيجي معانا ولا عندك شغل؟",
        "الموضوع ده كبير ومحتاج وقت، بس إن شاء الله هنخلصه الأسبوع ده",
        "مفيش حد في البيت دلوقتي، كلهم خرجوا من بدري",
        "لسه مخلصتش الواجب بتاعي وبكره عندي امتحان كمان",
        "الكتاب ده كويس جدا، قريته امبارح ومقدرتش أسيبه",
        "معلش يا حضرتك، ممكن تقولي المحطة فين؟",
        "دول أحسن ناس قابلتهم في حياتي بجد",
    ],
    "levantine": [
        "شو رأيك نروح عالبحر بكرا؟ الطقس كتير حلو هالأيام",
        "كيفك؟ شو عم تعمل هلق؟ بدي احكي معك بشغلة",
        "ليش هيك عملت؟ كنت قلتلي وأنا بساعدك",
        "هاد المطعم أكلو كتير طيب وأسعارو منيحة",
        "ما بعرف وين حطيت المفتاح، عم فتش عليه من الصبح",
        "نحنا رح نسافر عالضيعة آخر الأسبوع إذا بدكن تجوا معنا",
        "الولاد عم يلعبوا برا والجدة قاعدة تحت الشجرة متل كل يوم",
        "بدنا نعمل حفلة صغيرة مشان عيد ميلادو وما بدنا حدا يعرف",
        "لسا ما خلصت شغلي، بس أخلص بحكيك",
        "هيدا الفيلم كتير حلو، لازم تحضرو",
        "قديش حق هالقميص؟ غالي شوي بس حلو",
        "تعا لهون شوف شو اشتريت مبارح",
    ],
    "gulf": [
        "وش رايكم نطلع البر هالأسبوع؟ الجو وايد زين",
        "شلونك؟ شخبارك؟ من زمان ما شفناك يا رجال",
        "ابغى اروح السوق الحين بس السيارة مب عندي",
        "ليش ما رديت على اتصالي؟ كنت ابي اسألك عن الموعد",
        "مدري وش صار له، كان هني قبل شوي وراح",
        "هذي السالفة صارت لي السنة اللي فاتت وضحكنا عليها وايد",
        "ياخي وش فيك معصب؟ الموضوع ما يسوى",
        "ودي اسافر بس ما عندي اجازة الحين",
        "الأكل كان خوش أكل والمكان مرتب، بس زحمة وايد",
        "يمدينا نوصل قبل المغرب إذا طلعنا الحين",
        "شفيك ساكت؟ سولف لنا وش سويت في الرحلة",
        "انزين خلاص، اذا خلصت كلمني وانا اييك",
    ],
    "maghrebi": [
        "واش راك لاباس؟ شحال هادي ما شفتك",
        "كيفاش درتي باش تقراي هاد الكتاب كامل فنهار واحد؟",
        "غادي نمشيو للبحر غدوة إلا كان الجو مزيان",
        "ما عنديش الوقت دابا، نشوفك من بعد",
        "هادشي بزاف عليا، ما قديتش نكمل الخدمة بوحدي",
        "علاش ماجيتيش لبارح؟ كنا كاملين كنتسناوك",
        "الدار ديالنا قريبة من المدرسة ديالكم",
        "برشا ناس في السوق اليوم، ما لقيتش وين نوقف الكرهبة",
        "راني نحب نتعلم نطيب كيما ماما",
        "شنوة عملت في الامتحان؟ كان ساهل ولا صعيب؟",
        "حنا ساكنين هنا من شحال وعزيز علينا هاد الحي",
        "خويا الصغير كيقرا مزيان وديما كيجيب نقط زوينة",
    ],
    "iraqi": [
        "شلونك عيني؟ شكو ماكو؟ صار هواية ما شفتك",
        "هسه أجي يمك بس خل أخلص شغلي",
        "ليش ما گلت إلي من البداية؟ چان ساعدتك",
        "هاي السيارة مالتنا صار لها هواية عدنا",
        "أكو مطعم جديد يم بيتنا، أكله كلش طيب",
        "ماكو كهرباء من الصبح والجو كلش حار",
        "شنو رأيك نروح للسوق باچر سوا؟",
        "منو اللي دگ الباب هسه؟ آني ما سمعت شي",
        "احنه رايحين لبيت جدي، تعال ويانا",
        "خوش ولد، يدرس وما يأذي أحد",
        "شوكت ترجع من السفر؟ كلنا مشتاقين إلك",
        "فد يوم رحنا للشط وگعدنا لليل",
    ],
}
ARABIZI = [
    "ana msh 3aref a3mel eh el naharda, el gaw 7ar awi",
    "enta fein ya 7abibi? wa7eshtena kteer",
    "ya3ni mesh ma32ool, leh 3amalt keda?",
    "inshallah bokra nshoofak fel beit",
    "shu 3am ta3mel hala2? baddi e7ki ma3ak shway",
    "kifak? kif l ahel? nshallah kelkon mni7",
    "3andi shghol kteer el yom bas ba3den mneshrab ahwe",
    "wallah ma ba3ref wein 7atet l mefte7",
    "shlonak? weinak mokhtafi? ma shefnak men zaman",
    "abgha aro7 el souq al7een bas el sayara mo 3indi",
    "wach rak khoya? labas 3lik? ch7al hadi ma choftek",
    "ghadi nmchiw l b7ar ghedda inchallah ila kan ljaw mezyan, bzaf dyal nas",
    "el film da gamed awi, lazem teshofo 3ashan mafish zayo",
    "ma tz3alch 3liya, rani ghir kanḍ7ek m3ak khoya",
    "yalla ya gama3a, etga3amo 3ashan netlaa b2a",
    "bas ana 2oltelak keda men el awel wenta mesh sam3ni",
]
OTHERS = {
    "fa": "این یک متن فارسی است که برای آزمایش نوشته شده و چند جمله‌ی کوتاه دارد و ما آن را می‌خوانیم",
    "ur": "یہ اردو زبان میں لکھی گئی ایک عبارت ہے جس میں چند چھوٹے جملے ہیں اور ہم اسے پڑھتے ہیں",
    "ckb": "ئەمە دەقێکی کوردییە کە بۆ تاقیکردنەوە نووسراوە و چەند ڕستەیەکی کورتی تێدایە",
    "ps": "دا په پښتو ژبه لیکل شوی متن دی چې د ازموینې لپاره جوړ شوی او څو لنډې جملې لري",
    "fr": "La bibliothèque se trouve au centre de la vieille ville et les chercheurs y viennent de loin",
    "es": "La biblioteca está en el centro de la ciudad y la gente viene de muy lejos para leer sus libros",
    "tr": "Kütüphane eski şehrin merkezindedir ve araştırmacılar oraya uzak ülkelerden gelirler",
    "id": "Perpustakaan itu terletak di pusat kota tua dan para peneliti datang dari jauh untuk membacanya",
    "de": "Die Bibliothek liegt in der Mitte der alten Stadt, und viele Leute kommen von weit her zu ihr",
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_sentences_of_a_dialect_go_to_its_bucket(dialect):
    found = [IDENTIFIER.identify(sentence) for sentence in DIALECTS[dialect]]
    routed = [language for language in found if language.bucket == "ar-dialect"]
    missed = [s for s, language in zip(DIALECTS[dialect], found) if language.bucket != "ar-dialect"]
    assert len(routed) >= 0.85 * len(found), missed
    named = sum(language.dialect == dialect for language in routed)
    assert named >= 0.7 * len(routed), Counter(language.dialect for language in routed)


def test_arabic_in_latin_letters_has_a_bucket_of_its_own():
    missed = [sentence for sentence in ARABIZI if IDENTIFIER.identify(sentence).bucket != "ar-latn"]
    assert len(missed) <= 0.15 * len(ARABIZI), missed


@pytest.mark.parametrize("code", OTHERS)
def test_other_languages_are_neither_arabic_nor_arabizi(code):
    assert IDENTIFIER.identify(OTHERS[code]).bucket == code


@pytest.mark.parametrize(
    "text",
    [
        "mp3 h2o covid19 ps5 xbox 360 games",
        "k8s cluster with 3 nodes and s3 buckets in eu-west-2",
        "int main() { return 0; } // v2.5",
        "WW2 veterans met at 7pm in room B52",
    ],
)
def test_names_with_digits_are_no_arabizi(text):
    assert IDENTIFIER.identify(text).bucket != "ar-latn"


@pytest.mark.parametrize(("text", "bucket"), [(STORY, "ar"), (LIBRARY, "ar"), (ENGLISH, "en"), ("صباح الخير", "ar")])
def test_standard_arabic_and_english(text, bucket):
    assert IDENTIFIER.identify(text).bucket == bucket


def test_full_vocalisation_does_not_hide_a_language():
    text = "إِنَّ الْعِلْمَ نُورٌ يُضِيءُ الطَّرِيقَ لِكُلِّ مَنْ طَلَبَهُ، وَالْجَهْلُ ظَلَامٌ لَا يَهْتَدِي فِيهِ أَحَدٌ"
    assert IDENTIFIER.identify(text).bucket == "ar"


@pytest.mark.parametrize("text", ["", "  ", "123 ٤٥٦", "🙂 🕌", "... !؟", "َُِ"])
def test_what_has_no_letters_is_undetermined(text):
    assert IDENTIFIER.identify(text).bucket == "und"


def test_markers_are_counted_as_plain_python_counts_them():
    import numpy as np

    lexicon = _dialects()
    text = " ".join([*DIALECTS["egyptian"], *DIALECTS["gulf"], STORY])
    counts = np.zeros(len(lexicon.groups), dtype=np.int64)
    _count(WordFolder().words(text).hashes, lexicon.hashes, lexicon.members, counts)
    from megatron_native.corpus.languages import _rules

    rules = _rules("dialects")
    for group, words in {"standard": rules["standard"], "shared": rules["shared"], **rules["dialects"]}.items():
        wanted = {fold(word) for word in words}
        assert counts[lexicon.groups.index(group)] == sum(word in wanted for word in fold(text).split()), group


def test_real_news_is_standard_arabic():
    data = os.environ.get("MEGATRON_NATIVE_TEST_DATA")
    if not data:
        pytest.skip("MEGATRON_NATIVE_TEST_DATA names no folder of real test data")
    archive = zipfile.ZipFile(sorted(Path(data, "saudinewsnet").glob("*.zip"))[1])
    texts = [
        article["content"] for article in json.loads(archive.read(archive.namelist()[0])) if article["content"].strip()
    ]
    found = Counter(IDENTIFIER.identify(text).bucket for text in texts)
    assert found["ar"] >= 0.995 * len(texts), found
