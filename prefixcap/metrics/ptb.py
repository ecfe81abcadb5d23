"""The tokenizer of the COCO caption evaluation, in Python.

The COCO caption tools (Chen et al., "Microsoft COCO Captions", 2015) lower-case and split captions with
the `PTBTokenizer` of Stanford CoreNLP 3.4.1, a Java program that follows the conventions of the Penn
Treebank, and then leave punctuation out. `tokenize` gives the same tokens without Java.

The Java program is a lexer made of rules. At each position of the text the rule with the longest match
gives the next token; where two match the same length, the first does. Some rules also ask for what
follows the token; that context counts for the length, but is left for the next token. `_RULES` is that
list of rules. Most captions need none of it: they are words of letters with spaces between them, which
`_PLAIN_CAPTION` matches at once, and `_PLAIN_WORD` one by one where there is something else among them.

The COCO tools write all captions into one file, a caption a line, and the lexer reads on past the end of a line: the
first word of the next caption can decide whether "plan b." ends in "b" or "b.". `tokenize_corpus` therefore reads its
captions as one text, too. `tokenize` reads a single caption, as if a caption followed that begins with "A".

Three things differ on purpose. Characters that Java takes for the end of a line (a form feed, say) are spaces here,
while there they shift all captions that follow. Letters that entered Unicode after version 6.1 are letters here, and
are dropped there. Scripts that are written without spaces are split into characters (`prefixcap.metrics.scripts`),
while there an entire clause is one word.
"""

import re
import string
from collections import deque
from collections.abc import Callable, Iterable
from functools import cache
from typing import NamedTuple, TypeAlias

from prefixcap.metrics.scripts import character, spaced

# What the COCO tools drop after tokenizing. Their list also names -LRB-, -RRB-, -LCB- and -RCB-, which
# never occur because the tokens are lower-cased: brackets stay in a caption as -lrb-, -rrb- and so on.
_PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])


def tokenize(caption: str) -> str:
    """The lower-cased tokens of a caption by itself, punctuation left out, joined by single spaces.

    The result has no line break. It is empty where the caption has nothing but spaces and punctuation.

    Examples:
        >>> tokenize("The dog doesn't bark.")
        "the dog does n't bark"
    """
    plain = _plain_tokens(caption)
    return tokenize_corpus([caption, "A "])[0] if plain is None else plain


def tokenize_corpus(captions: Iterable[str]) -> list[str]:
    """What `tokenize` gives, for captions that the COCO tools read as one text: each is the context of the one before.

    Args:
        captions: in the order in which the tools would read them.

    Examples:
        >>> tokenize_corpus(["Plan b.", "a dog", "Plan b.", "The dog"])
        ['plan b.', 'a dog', 'plan b', 'the dog']
    """
    lines = [text if text.isascii() and text.isprintable() else _as_line(text) for text in captions]
    text = "\n".join(lines)
    tokenized, pending = [], deque[str]()  # what a token that spans lines leaves for those that follow
    start = position = 0
    for line in lines:
        end = start + len(line)
        plain = _plain_tokens(line) if position <= start else None
        if plain is None:
            tokens = [pending.popleft()] if pending else []
            position = max(position, start)
            while position < end:
                token, position = _token_at(text, position)
                token, *others = token.split("\n")
                pending.extend(others)
                tokens.append(token)
            printed = " ".join(filter(None, tokens)).rstrip()  # as the tools read what Java prints
            plain = " ".join(token for token in printed.split(" ") if token not in _PUNCTUATION)
        tokenized.append(plain)
        start = end + 1
    return tokenized


def _as_line(caption: str) -> str:
    """A caption without line breaks, and with spaces where its script has none."""
    return spaced(_LINE_BREAK.sub(" ", caption))


def _plain_tokens(line: str) -> str | None:
    """The tokens of a caption that needs none of the rules; None: it may need them."""
    if not _PLAIN_CAPTION.fullmatch(line):
        return None
    words = line.removesuffix(".").replace(",", "").lower().split()
    return None if line.endswith(".") and words[-1] in _MAY_KEEP_DOT else " ".join(words)


def _token_at(text: str, position: int) -> tuple[str, int]:
    """The token that begins at a position, or "", and where it ends."""
    if not text[position].isascii() and (unspaced := character().match(text, position)):
        return unspaced[0], unspaced.end()
    plain = _PLAIN_WORD.match(text, position)
    if plain and not (text[plain.end()] == "." and plain[1].lower() in _MAY_KEEP_DOT):
        return plain[1].lower(), plain.end()
    return _next_token(text, position)


def _next_token(text: str, start: int) -> tuple[str, int]:
    """The token of the rule that matches longest ("" for what is dropped), and where it ends."""
    longest, end = start, start + 1
    rewrite: _Rewrite = _drop
    for pattern, rule_rewrite in _compiled_rules():
        match = pattern.match(text, start)
        if match and match.end() > longest:
            longest, end, rewrite = match.end(), match.end("token"), rule_rewrite
    return rewrite(text[start:end]).lower(), end


# ---- what becomes of a match -------------------------------------------------------------------------


_Rewrite: TypeAlias = Callable[[str], str]


def _drop(_: str) -> str:
    return ""


def _keep(token: str) -> str:
    return token


def _always(token: str) -> _Rewrite:
    return lambda _: token


def _without_soft_hyphens(token: str) -> str:
    return token.replace("\u00ad", "") or "-"


def _ampersand(token: str) -> str:
    return re.sub("(?i)&amp;", "&", token)


def _unbroken(token: str) -> str:
    return token.replace(" ", "\u00a0")


def _brackets(token: str) -> str:
    return token.replace("(", "-LRB-").replace(")", "-RRB-")


_FRACTIONS = str.maketrans({"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"})
_CURRENCIES = str.maketrans(
    {"\u00a2": "cents", "\u00a3": "#", "\u0080": "$", "\u00a4": "$", "\u20a0": "$", "\u20ac": "$"}
)
_QUOTES = str.maketrans(
    {
        **dict.fromkeys("\u0091\u2018\u201b\u2039", "`"),
        **dict.fromkeys("\u0092\u2019\u203a", "'"),
        **dict.fromkeys("\u0093\u201c\u00ab", "``"),
        **dict.fromkeys('\u0094\u201d\u00bb"', "''"),
    }
)


def _quotes(token: str) -> str:
    return token.replace("&apos;", "'").replace("&quot;", "''").translate(_QUOTES)


# ---- parts of the rules ------------------------------------------------------------------------------


def _words(words: str) -> str:
    """Any of the words, in upper or lower case; a dot in them is a dot."""
    return "(?ai:" + "|".join(words.replace(".", r"\.").split()) + ")"


def _capitalized(words: str) -> str:
    """Any of the words, with a capital; other letters in upper or lower case."""
    return "(?:" + "|".join(f"{word[0]}{_words(word[1:])}" for word in words.split()) + ")"


_SPACE = r"[ \t\u00a0\u2000-\u200a\u3000]"
_NEWLINE = r"(?:\r?\n|[\r\x0b\x0c\x85\u2028\u2029])"
_BLANK = f"(?:{_SPACE}|{_NEWLINE})"
# Letters of the Basic Multilingual Plane: the lexer works on 16-bit units and drops all others.
_NUMERALS = (
    r"\u00b2\u00b3\u00b9\u00bc-\u00be\u09f4-\u09f9\u0bf0-\u0bf2\u2070-\u2079\u2080-\u2089\u2150-\u2182"
    r"\u2185-\u2189\u2460-\u249b\u24ea-\u24ff\u2776-\u2793\u3007\u3021-\u3029\u3038-\u303a\u3192-\u3195"
    r"\u3220-\u3229\u3248-\u324f\u3251-\u325f\u3280-\u3289\u32b1-\u32bf"
)
_ALPHA = rf"[^\W\d_{_NUMERALS}\U00010000-\U0010ffff]"
_ALPHANUMERIC = rf"(?:{_ALPHA}|\d)"
# Inside words, marks that combine with a letter and spelled-out accents (&eacute;) are letters too.
_MARKS = (
    r"\u00ad\u02c2-\u02c5\u02d2-\u02df\u02e5-\u036f\u0375\u0384\u0385\u03f6\u0483-\u0487\u055a-\u055f"
    r"\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0615-\u061a\u064b-\u065e\u0670\u06d6-\u06ed"
    r"\u070f\u0711\u0730-\u074c\u07a6-\u07b0\u07eb-\u07f3\u0900-\u0903\u093c\u093e-\u094e\u0951-\u0955"
    r"\u0962\u0963\u0981-\u0983\u09bc-\u09cd\u09d7\u09e2\u09e3\u0a01-\u0a03\u0a3c-\u0a4f\u0a81-\u0a83"
    r"\u0abc-\u0acf\u0b82\u0bbe-\u0bcd\u0c01-\u0c03\u0c3e-\u0c56\u0d3e-\u0d48\u0e31-\u0e3a\u0e47-\u0e4e"
    r"\u0eb1-\u0ebc\u0ec8-\u0ecd"
)
_LETTER = rf"(?:{_ALPHA}|(?!\w)[{_MARKS}]|&[aeiouAEIOU](?ai:acute|grave|uml);)"
_WORD = rf"{_LETTER}(?:{_LETTER}|\d|[.!?](?={_LETTER}))*"

_APOSTROPHE = r"(?:['\u0092\u2019]|(?ai:&apos;))"
_LIKE_APOSTROPHE = rf"(?:{_APOSTROPHE}|[`\u0091\u2018\u201b])"
_SUFFIX = rf"{_APOSTROPHE}(?:[msdMSD]|(?ai:re|ve|ll))"  # it's, we're
_NOT = rf"[nN]{_LIKE_APOSTROPHE}[tT]"  # do n't
_ELISION = rf"(?:[dDoOlL]{_LIKE_APOSTROPHE}{_ALPHANUMERIC})?"  # d'Or, O'Hara
_HYPHEN = r"[-_\u058a\u2010\u2011]"
_THING = rf"{_ELISION}{_ALPHANUMERIC}+(?:{_HYPHEN}{_ELISION}{_ALPHANUMERIC}+)*"
_CAPITALS_AND = r"[A-Z]+(?:(?:[+&]|(?ai:&amp;))[A-Z]+)+"  # AT&T

_AMERICAN = r"(?ai:(?:canada|sino|korean|eu|japan|non)-u\.s|u\.s\.-(?:u\.k|u\.s\.s\.r))"
_ACRONYM = rf"(?:{_AMERICAN}|[A-Za-z](?:\.[A-Za-z])*)"
_DOTTED_ACRONYM = rf"(?:{_AMERICAN}|[A-Za-z](?:\.[A-Za-z])+)"
_HYPHENATED = rf"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:{_DOTTED_ACRONYM}\.|[A-Za-z0-9\u00ad]+))+"
# "a." ends a sentence before one of these words, and is an initial before others.
_SENTENCE_STARTS = (
    "About According Additionally After An A As At But Earlier He Her Here However If In It Last Many More "
    "Mr. Ms. Now Once One Other Our She Since So Some Such That The Their Then There These They This We "
    "When While What Yet You"
)
_ABBREVIATIONS = (
    # months and days
    "Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec Mon Tue Tues Wed Thu Thurs Fri "
    # states
    "Ala Ariz Calif Colo Conn Ct Dak Fla Ga Ind Kan Kans Ky Md Mich Minn Mo Mont Neb Nev Okla Penn Tenn Va "
    "Vt Wis Wisc Wyo "
    # companies
    "Inc Co Cos Corp Ltd Plc Rt Bancorp Bhd Assn Univ Intl Sys "
    # other
    "tel est ext sq Jr Sr Bros Ed.D Ph.D Blvd Rd Esq etc al seq Bldg"
)
_STATES = "Az Ark Del Ill La Mass Miss Ore Pa Tex Wash"  # words too, so only with a capital
_TITLES = (
    "Mr Mrs Ms Dr Drs Prof Profs Sen Sens Rep Reps Atty Attys Lt Col Gen Messrs Gov Govs Adm Rev Maj Sgt "
    "Cpl Pvt Capt St Ste Ave Pres Lieut Hon Brig Cmdr Comdr Pfc Spc Supt Supts Det Mt Ft Adj Adv Asst Assoc "
    "Ens Insp Mlle Mme Msgr Sfc vs Alex Wm Jos Cie cf TREAS Ph Invt Elec Natl Dept"
)
# The two where one letter has to be in lower case: Pty and Pte (proprietary, private) and Mfg and Mtg.
_PROPRIETARY = "[pP]{1,2}[tT][ye][sS]?"
_MANUFACTURING = "[mM][ft][gG]"
_TITLE = f"(?:{_ACRONYM}|{_words(_TITLES)}|{_MANUFACTURING}|{_capitalized('Miss')})"
_NUMBERED = "ca fig figs prop no nos art bldg pp op"  # "fig. 2"
_FILE_ENDINGS = (
    "bat bmp c class cgi cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png "
    "ppt ps py sql tar txt wav x xml zip"
)
_URL_PATH = r"""/[^ \t\n\f\r"<>|()]+[^ \t\n\f\r"<>|.!?(){},-]"""
_WWW = r"""(?ai:www)\.(?:[^ \t\n\f\r"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}"""
_DOMAIN = rf"""(?:[^ \t\n\f\r"`'<>|.!?(){{}},-_$]+\.)+{_words("com net org edu")}"""
_TAG_NAME = r"[A-Za-z][A-Za-z0-9_:.\-]*"
_TAG = (
    rf"<(?:[!?][A-Za-z\-][^>\r\n]*|/{_TAG_NAME}"
    rf"|{_TAG_NAME}(?: +{_TAG_NAME}(?: *= *(?:'[^']*'|\"[^\"]*\"))?)* */?) *>"
)
_PHONE_SPACE = r"[- \u00a0]"
_INSIDE_SENTENCE = r"[,;:\u3001]"
_SYMBOLS = (
    r"[+%&~^|\\\u00a6-\u00a9\u00ac\u00ae-\u00ba\u00d7\u00f7\u0387\u05be\u05c0\u05c3\u05c6\u05f3\u05f4"
    r"\u0600-\u0603\u0606-\u060a\u060c\u0614\u061b\u061e\u066a\u066d\u0703-\u070d\u07f6-\u07f8\u0964\u0965"
    r"\u0e4f\u1fbd\u2016\u2017\u2020-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2044\u207a-\u207f\u208a-\u208e"
    r"\u2100-\u214f\u2190-\u2bff\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]"
)


class _Rule(NamedTuple):
    token: str
    rewrite: _Rewrite = _keep
    before: str = ""  # what must follow the token


@cache
def _compiled_rules() -> list[tuple[re.Pattern[str], _Rewrite]]:
    """The rules, compiled at first use: that takes longer than an import should."""
    return [(re.compile(f"(?P<token>{rule.token})(?:{rule.before})"), rule.rewrite) for rule in _RULES]


_RULES = [
    _Rule(r"[cC]\+\+|[cfCF]#"),
    # words that are two tokens
    _Rule("(?ai:can)", before="(?ai:not)"),
    _Rule("(?ai:'t)", before="(?ai:was|is)"),
    _Rule("(?ai:gon|wan)", before="(?ai:na)"),
    _Rule("(?ai:got)", before="(?ai:ta)"),
    _Rule("(?ai:lem|gim)", before="(?ai:me)"),
    # markup
    _Rule(_TAG, _unbroken),
    _Rule(r"&(?ai:md|mdash|ndash);|[\u0096\u0097\u2013-\u2015]", _always("--")),
    _Rule("(?ai:&amp;)", _ampersand),
    _Rule("&(?ai:ht|tl|ur|lr|qc|ql|qr|odq|cdq|#[0-9]+);"),
    # words and words with an apostrophe
    _Rule(_WORD, _without_soft_hyphens, before=_SUFFIX),
    _Rule(r"[A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*", _without_soft_hyphens, before=_NOT),
    _Rule(_WORD, _without_soft_hyphens),
    _Rule(rf"[A-HJ-XZn]{_LIKE_APOSTROPHE}{_ALPHA}{{2,}}"),
    _Rule(rf"{_ALPHA}+[aeiouyAEIOUY]{_LIKE_APOSTROPHE}[aeiouA-Z]{_ALPHA}*"),
    _Rule(rf"{_APOSTROPHE}(?:[nN]{_APOSTROPHE}?|(?ai:em|till?|cause)|[2-9]0[sS])"),
    _Rule(rf"(?:[lLdDjJ]|(?ai:dunkin|somethin|ol)){_APOSTROPHE}"),
    _Rule(rf"(?ai:cont'd\.?|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l)|[oO]{_LIKE_APOSTROPHE}[oO]"),
    _Rule(f"[yY]{_APOSTROPHE}", before=_ALPHA),
    # addresses
    _Rule(r"""(?ai:https?)://[^ \t\n\f\r"<>|(){}]+[^ \t\n\f\r"<>|.!?(){},-]"""),
    # Each with and without a path: Python takes the first way to match, not the longest.
    _Rule(_WWW),
    _Rule(_WWW + _URL_PATH),
    _Rule(_DOMAIN),
    _Rule(_DOMAIN + _URL_PATH),
    _Rule(
        r"""(?:(?ai:&lt;)|<)?[a-zA-Z0-9][^ \t\n\f\r"<>|(){}\u00a0]*@"""
        r"""[^ \t\n\f\r"<>|(){}.\u00a0]+(?:\.[^ \t\n\f\r"<>|(){}.\u00a0]+)*(?:(?ai:&gt;)|>)?"""
    ),
    _Rule(rf"@[a-zA-Z_][a-zA-Z_0-9]*|#{_LETTER}+"),
    _Rule(f"{_SUFFIX}|{_NOT}", _quotes, before="[^A-Za-z]"),
    # numbers
    _Rule(r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}"),
    _Rule(r"[-+]?(?:\d*(?:[.:,\u00ad\u066b\u066c]\d+)+|\d+)", _without_soft_hyphens),
    _Rule(r"[\u207a\u207b\u208a\u208b]?(?:[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+)"),
    _Rule(r"(?:\d{1,4}[- \u00a0])?\d{1,4}(?:\\?/|\u2044)\d{1,4}", _unbroken),
    _Rule(r"[\u00bc-\u00be\u2153-\u215e]", lambda token: token.translate(_FRACTIONS)),
    # words of the treebank
    _Rule(
        r"-(?ai:rrb|lrb|rcb|lcb|rsb|lsb)-|(?ai:c\.d\.s|pro-|anti-|s(?:&|&amp;)p-500|s(?:&|&amp;)ls)"
        f"|(?ai:cap){_APOSTROPHE}[nN]|[cC]{_APOSTROPHE}(?ai:est)",
        _ampersand,
    ),
    _Rule(r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}"),  # and/or
    _Rule(r"[A-Z]*\$|#"),
    _Rule(
        r"[\u00a2-\u00a5\u0080\u20a0\u20ac\u060b\u0e3f\u20a4\uffe0\uffe1\uffe5\uffe6]",
        lambda token: token.translate(_CURRENCIES),
    ),
    # abbreviations
    _Rule("[A-Za-z]", before=rf"\.{_BLANK}+(?:(?:{_capitalized(_SENTENCE_STARTS)}|{_TAG}){_BLANK})"),
    _Rule(rf"{_DOTTED_ACRONYM}\.", before=rf"{_BLANK}+(?:{_capitalized(_SENTENCE_STARTS)}|{_TAG}){_BLANK}"),
    _Rule(rf"{_words(_NUMBERED)}\.", before=rf"{_BLANK}?\d"),
    _Rule(r"(?ai:pty|pte|co)\.", before=rf"{_SPACE}(?ai:ltd|lim)"),
    _Rule(rf"(?:{_words(_ABBREVIATIONS)}|{_PROPRIETARY}|{_capitalized(_STATES)})\.", before=r"[\s\S]{2}|"),
    _Rule(rf"{_TITLE}\."),
    _Rule(_TITLE, before=_SPACE),
    _Rule(_ACRONYM, before=_BLANK),
    _Rule(f"{_APOSTROPHE}[0-9][0-9]", before=_BLANK),
    _Rule(rf"(?:{_LETTER}|\d)+(?:\.(?:{_LETTER}|\d)+)*\.{_words(_FILE_ENDINGS)}", before=rf"{_BLANK}|[.?!,]"),
    _Rule(rf"{_WORD}\.", _without_soft_hyphens, before=_INSIDE_SENTENCE),
    _Rule(
        rf"(?:\([0-9]{{2,3}}\)[ \u00a0]?|(?:\+\+?)?(?:[0-9]{{2,4}}{_PHONE_SPACE})?[0-9]{{2,4}}{_PHONE_SPACE})"
        rf"[0-9]{{3,4}}{_PHONE_SPACE}?[0-9]{{3,5}}",
        lambda token: _brackets(_unbroken(token)),
    ),
    _Rule(r"(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}"),
    # quotes, brackets, dashes and other signs
    _Rule('"|(?ai:&quot;)', _quotes, before="[A-Za-z0-9$]"),
    _Rule('"|(?ai:&quot;)', _quotes),
    _Rule("\x7f", _drop),
    _Rule("<|(?ai:&lt;)", _always("<")),
    _Rule(">|(?ai:&gt;)", _always(">")),
    _Rule(r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]", _brackets, before="[^A-Za-z0-9]"),  # smileys
    _Rule(r"[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'](?:[_.]?[-^x=~<>']|-[-^x=~<>'`])\)", _brackets),
    _Rule(r"\{", _always("-LCB-")),
    _Rule(r"\}", _always("-RCB-")),
    _Rule(r"\[", _always("-LSB-")),
    _Rule(r"\]", _always("-RSB-")),
    _Rule(r"[()]", _brackets),
    _Rule("-{3,4}(?!-)", _always("--")),
    _Rule("-+"),
    _Rule(r"\.{3,5}|(?:\.[ \u00a0]){2,4}\.|[\u0085\u2026]", _always("...")),
    _Rule(r"@+|#+|_+|\*+|(?:\\\*){1,3}"),
    _Rule(rf"{_INSIDE_SENTENCE}|[?!]+|[.\u00a1\u00bf\u037e\u0589\u061f\u06d4\u0700-\u0702\u07fa\u3002=/]"),
    # what has a hyphen, a digit or an ampersand
    _Rule(rf"{_HYPHENATED}\.", _without_soft_hyphens, before=_INSIDE_SENTENCE),
    _Rule(_HYPHENATED, _without_soft_hyphens),
    _Rule(rf"{_THING}\.", before=_INSIDE_SENTENCE),
    _Rule(_THING),
    _Rule(rf"{_CAPITALS_AND}\.", _ampersand, before=_INSIDE_SENTENCE),
    _Rule(_CAPITALS_AND, _ampersand),
    _Rule("'", _always("`"), before=r"[A-Za-z][^ \t\n\r\u00a0]"),
    _Rule(f"{_SUFFIX}|{_NOT}", _quotes),
    _Rule(rf"''|[`\u2018-\u201f\u0091-\u0094\u2039\u203a\u00ab\u00bb]{{1,2}}|{_APOSTROPHE}", _quotes),
    _Rule("<<|>>"),
    _Rule(_SYMBOLS),
    _Rule(rf"{_SPACE}+|(?ai:&nbsp;)", _drop),
]

# Letters between spaces, also with hyphens, which is most of any caption: no rule matches longer there, and
# none rewrites them. So too before the full stop at the end, unless the word may be an abbreviation.
_LETTERS = r"(?!(?ai:cannot|gonna|wanna|gotta|lemme|gimme)(?![A-Za-z]))[A-Za-z]+(?:-[A-Za-z]+)*"
_LINE_BREAK = re.compile("[\n\r\x0b\x0c\u2028\u2029]")
_PLAIN_WORD = re.compile(rf" *({_LETTERS})(?=,? |\.?\n)")
_PLAIN_CAPTION = re.compile(rf"{_LETTERS}(?:,? +{_LETTERS})*\.?")
_MAY_KEEP_DOT = frozenset(
    f"{_ABBREVIATIONS} {_TITLES} {_STATES} {_NUMBERED} {' '.join(string.ascii_lowercase)} mfg mtg "
    "pty ptys ppty pptys pte ptes ppte pptes".lower().split()
)
