"""Phrases that rules look for, lower case, and the search for all of them at once. What they mean for a text is in
rules.py.

To teach the rules a language (ISO 639-1), add its row; a phrase must be so specific that it does not open a good text.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

from headwater import optional


class Hit(NamedTuple):
    """at: the first character of `phrase` in the lower-cased text."""

    at: int
    phrase: str


def find_phrases(lower: Sequence[str], phrases: tuple[str, ...]) -> dict[int, list[Hit]]:
    """Text number -> its hits in order, overlapping ones too, for those texts (in lower case) that have any."""
    raw = [text.encode("utf-8", "surrogatepass") for text in lower]
    starts = [0, *accumulate(len(text) + 1 for text in raw)]
    found: dict[int, list[Hit]] = {}
    for number, start, _ in _automaton(phrases).find_matches_as_indexes(b"\n".join(raw), overlapping=True):
        text = bisect_right(starts, start) - 1
        found.setdefault(text, []).append(Hit(start - starts[text], phrases[number]))
    for text, hits in found.items():
        if len(raw[text]) > len(lower[text]):
            place = _characters(raw[text], {hit.at for hit in hits})
            found[text] = [Hit(place[hit.at], hit.phrase) for hit in hits]
    return found


def _characters(raw: bytes, places: set[int]) -> dict[int, int]:
    """Of places in UTF-8 the number of the character that begins there."""
    found, before, count = dict[int, int](), 0, 0
    for place in sorted(places):
        count += len(raw[before:place].decode("utf-8", "surrogatepass"))
        found[place], before = count, place
    return found


@cache
def _automaton(phrases: tuple[str, ...]) -> Any:
    library = optional.load("ahocorasick_rs", extra="data")
    # Of bytes: the search in strings makes a table of the places of all characters, which costs more than the search.
    raw = [phrase.encode("utf-8") for phrase in phrases]
    return library.BytesAhoCorasick(raw, implementation=library.Implementation.DFA)


REFUSALS: dict[str, tuple[str, ...]] = {
    "en": (
        "as an ai language model", "as an ai assistant, i", "as a large language model, i", "as an ai, i ",
        "i'm sorry, but i can't", "i’m sorry, but i can’t", "i'm sorry, but i cannot", "i am sorry, but i cannot",
        "i'm sorry, i can't", "i'm sorry, but as an ai", "sorry, but i can't assist", "i cannot assist with",
        "i can't assist with", "i can’t assist with", "i can't help with that", "i cannot help with that request",
        "i cannot fulfill", "i can't fulfill", "i'm unable to assist", "i am unable to assist",
        "i'm not able to help with", "i cannot provide information on", "i must decline to",
        "i won't be able to help with", "i don't have personal opinions",
    ),
    "ar": (
        "بصفتي نموذج لغة", "كنموذج لغوي", "بصفتي مساعد ذكاء اصطناعي", "لا أستطيع المساعدة في",
        "لا يمكنني المساعدة في", "عذرًا، لا أستطيع", "عذراً، لا يمكنني", "آسف، لا يمكنني", "أنا آسف، لكن لا أستطيع",
    ),
    "de": (
        "als ki-sprachmodell", "als ki-assistent", "als großes sprachmodell", "es tut mir leid, aber ich kann",
        "tut mir leid, aber ich kann", "ich kann dir dabei nicht helfen", "ich kann ihnen dabei nicht helfen",
        "bei dieser anfrage kann ich nicht helfen",
    ),
    "es": (
        "como modelo de lenguaje", "como un modelo de lenguaje", "como inteligencia artificial, no",
        "lo siento, pero no puedo", "lo siento, no puedo ayudar", "no puedo ayudarte con",
        "no puedo ayudar con esa solicitud",
    ),
    "fr": (
        "en tant que modèle de langage", "en tant qu'assistant ia", "en tant qu’ia", "en tant qu'ia",
        "je suis désolé, mais je ne peux pas", "désolé, mais je ne peux pas", "je ne peux pas vous aider avec",
        "je ne suis pas en mesure de répondre à cette demande",
    ),
    "it": (
        "come modello linguistico", "in quanto modello linguistico", "in quanto ia, non",
        "mi dispiace, ma non posso", "non posso aiutarti con", "non sono in grado di soddisfare questa richiesta",
    ),
    "ja": (
        "ai言語モデルとして", "aiの言語モデルとして", "大規模言語モデルとして、", "aiアシスタントとして",
        "申し訳ありませんが、お手伝い", "申し訳ございませんが、その", "申し訳ありませんが、その",
        "そのご要望にはお応えできません", "そのリクエストにはお応えできません",
    ),
    "ko": (
        "ai 언어 모델로서", "인공지능 언어 모델로서", "언어 모델로서 저는", "죄송하지만, 저는", "죄송하지만 그 요청",
        "죄송합니다만, 도와드릴 수", "그 요청은 도와드릴 수 없습니다",
    ),
    "pt": (
        "como modelo de linguagem", "como um modelo de linguagem", "sinto muito, mas não posso",
        "desculpe, mas não posso", "lamento, mas não posso", "não posso ajudar com ess", "não posso ajudá-lo com",
    ),
    "ru": (
        "как языковая модель", "как ии-ассистент", "как искусственный интеллект, я не", "извините, но я не могу",
        "к сожалению, я не могу помочь", "я не могу помочь с этим",
    ),
    "zh": (
        "作为一个人工智能语言模型", "作为人工智能语言模型", "作为ai语言模型", "作为一个ai", "作为一个语言模型",
        "抱歉，我无法", "抱歉，我不能", "对不起，我不能", "对不起，我无法", "很抱歉，我无法", "我无法满足这个请求",
    ),
}  # fmt: skip

# Phrases that generated text wears out: one of them is style, many in a short text are a mark of its origin.
OVERUSED: dict[str, tuple[str, ...]] = {
    "en": (
        "a testament to", "rich tapestry", "tapestry of", "delve into", "delves into", "delving into",
        "in the realm of", "navigate the complexities", "navigating the complexities", "it's important to note that",
        "it is important to note that", "it's worth noting that", "it is worth noting that", "in today's fast-paced",
        "in today's digital age", "ever-evolving", "ever-changing landscape", "in the world of",
        "plays a crucial role", "play a crucial role", "plays a pivotal role", "plays a vital role",
        "unlock the potential", "unlock the full potential", "unlock the secrets", "harness the power",
        "embark on a journey", "game-changer", "game changer", "look no further", "dive into the world",
        "let's dive in", "whether you're a seasoned", "i hope this helps", "in conclusion,", "to summarize,",
        "certainly! here", "sure! here", "of course! here", "absolutely! here", "great question", "feel free to ask",
        "feel free to reach out", "if you have any other questions", "i hope this email finds you well",
        "a myriad of", "a plethora of", "underscores the importance", "stands as a beacon", "sends shivers down",
        "barely above a whisper", "a symphony of", "not just a", "more than just a",
    ),
    "ja": (
        "について詳しく見ていきましょう", "いかがでしたか", "と言えるでしょう", "重要な役割を果たしています",
        "ぜひ参考にしてみてください",
    ),
    "de": (
        "in der heutigen schnelllebigen", "es ist wichtig zu beachten", "spielt eine entscheidende rolle",
        "ein zeugnis für", "tauchen wir ein",
    ),
    "es": (
        "es importante destacar que", "en el mundo actual", "juega un papel crucial", "un testimonio de",
        "sumérgete en",
    ),
    "fr": (
        "il est important de noter que", "dans le monde d'aujourd'hui", "joue un rôle crucial", "un témoignage de",
        "plongeons dans",
    ),
    "it": (
        "è importante notare che", "nel mondo di oggi", "gioca un ruolo cruciale", "una testimonianza di",
    ),
    "ko": (
        "중요한 역할을 합니다", "에 대해 자세히 알아보겠습니다", "도움이 되셨기를 바랍니다", "라고 할 수 있습니다",
    ),
    "pt": (
        "é importante notar que", "no mundo de hoje", "desempenha um papel crucial", "um testemunho de",
    ),
    "ru": (
        "важно отметить, что", "в современном мире", "играет ключевую роль", "надеюсь, это поможет",
    ),
    "zh": (
        "值得注意的是", "总的来说", "在当今社会", "起着至关重要的作用", "希望这对你有所帮助",
    ),
    "ar": (
        "من المهم أن نلاحظ", "في عالم اليوم", "تلعب دورًا حاسمًا", "في الختام",
    ),
}  # fmt: skip

# Lines of a web page that are not its text.
BOILERPLATE: tuple[str, ...] = (
    "lorem ipsum", "all rights reserved", "accept cookies", "accept all cookies", "this site uses cookies",
    "we use cookies", "cookie policy", "cookie settings", "privacy policy", "terms of service", "terms of use",
    "terms and conditions", "enable javascript", "javascript is disabled", "javascript is required",
    "your browser does not support", "subscribe to our newsletter", "sign up for our newsletter",
    "share on facebook", "share on twitter", "follow us on", "click here to", "skip to content",
    "skip to main content", "back to top", "log in to comment", "add to cart", "page not found", "404 not found",
    "access denied", "powered by wordpress", "read more »", "copyright ©", "tous droits réservés",
    "alle rechte vorbehalten", "todos los derechos reservados", "politique de confidentialité",
    "datenschutzerklärung", "política de privacidad", "tutti i diritti riservati", "todos os direitos reservados",
    "プライバシーポリシー", "無断転載を禁じます", "개인정보처리방침", "무단 전재", "版权所有", "隐私政策",
    "سياسة الخصوصية", "جميع الحقوق محفوظة",
)  # fmt: skip
