"""Small real tokenizers, trained in the test on Arabic and English sentences: byte-level BPE and SentencePiece."""

import json
from pathlib import Path

SENTENCES = [
    "ذهب الطالب إلى المدرسة في الصباح الباكر وعاد منها مسرورا.",
    "قالت الوزيرة إن المشروع الجديد سيوفر المياه لأكثر من ألف قرية.",
    "إِنَّ العِلْمَ نُورٌ، وَالجَهْلَ ظَلامٌ؛ فَهَلْ يَسْتَوِيَانِ؟",
    "The committee agreed on a new plan for the old harbour.",
    "Prices rose by 3.5% in 2015; nobody knew why.",
    "def add(a, b):\n    return a + b\n",
]
GPT_SPLIT = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def write_bpe(folder: Path, specials: list[str], begin: str | None = None, vocab_size: int = 600, **config) -> Path:
    """A byte-level BPE folder: `tokenizer.json` (LLaMA-3's split, a template if `begin`) and `tokenizer_config.json`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(GPT_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    tokenizer.add_special_tokens(specials)
    if begin is not None:
        template = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config}))
    return folder


def write_smollm(folder: Path) -> Path:
    """An Instruct tokenizer in SmolLM2's manner: no begin token, its end token is the turn's."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return write_bpe(folder, specials, bos_token="<|im_start|>", eos_token="<|im_end|>")


def write_llama3(folder: Path) -> Path:
    """An Instruct tokenizer in LLaMA-3's manner: a template that puts the begin token first."""
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    return write_bpe(
        folder, specials, "<|begin_of_text|>", bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )


def write_sentencepiece(path: Path) -> Path:
    """A SentencePiece BPE model with byte fallback, in LLaMA-2's manner (control symbols <s> and </s>)."""
    import sentencepiece

    corpus = path.with_suffix(".txt")
    corpus.write_text("\n".join(SENTENCES[:5] * 20), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(path.with_suffix("")), vocab_size=420, model_type="bpe",
        byte_fallback=True, character_coverage=1.0, minloglevel=2,
    )
    return path
