"""Which characters may stand in a file name that a person will be shown (qubes.Filecopy without ``allow-all-names``).

Printable ASCII, and letters, numbers, punctuation, mathematical and currency symbols of Latin, Greek, Cyrillic, Han,
Hangul, kana, bopomofo, braille and of no particular script, written left to right or neutral, in recommended use.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cache

_RANGES = """
a1-a5 a7 aa-ac b1-b3 b5-b7 b9-2c1 2c6-2d1 2e0-2e4 2ec 2ee 370-374 376-377 37a-37f 386-38a 38c 38e-3a1 3a3-3e1
3f0-481 48a-52f 60c 964-965 e3f 10fb 1100-11ff 16eb-16ed 1735-1736 1802-1803 1805 1c80-1c88 1cd3 1ce9-1cec
1cee-1cf3 1cf5-1cf6 1cfa 1d00-1dbf 1e00-1f15 1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57 1f59 1f5b 1f5d 1f5f-1f7d
1f80-1fb4 1fb6-1fbc 1fbe 1fc2-1fc4 1fc6-1fcc 1fd0-1fd3 1fd6-1fdb 1fe0-1fec 1ff2-1ff4 1ff6-1ffc 2010-2027
2030-205e 2070-2071 2074-208e 2090-209c 20a0-20c0 2102 2107 210a-2113 2115 2118-211d 2124 2126 2128 212a-212d
212f-2139 213c-2149 214b 214e 2150-2189 2190-2194 219a-219b 21a0 21a3 21a6 21ae 21ce-21cf 21d2 21d4 21f4-22ff
2308-230b 2320-2321 2329-232a 237c 239b-23b3 23dc-23e1 2460-249b 24ea-24ff 25b7 25c1 25f8-25ff 266f 2768-2793
27c0-27ff 2900-2aff 2b30-2b44 2b47-2b4c 2c60-2c7f 2e00-2e4f 2e52-2e5d 3001-3003 3005-3011 3014-301f 3021-3029
3030-3035 3038-303d 3041-3096 309d-30ff 3105-312f 3131-318e 3192-3195 31a0-31bf 31f0-31ff 3220-3229 3248-324f
3251-325f 3280-3289 32b1-32bf 3400-4dbf 4e00-9fff a640-a66e a673 a67e-a69d a717-a71f a722-a788 a78b-a7ca
a7d0-a7d1 a7d3 a7d5-a7d9 a7f2-a7ff a830-a835 a838 a92e a960-a97c a9cf ab30-ab5a ab5c-ab69 ac00-d7a3 d7b0-d7c6
d7cb-d7fb f900-fa6d fa70-fad9 fb00-fb06 fd3e-fd3f fe10-fe19 fe30-fe52 fe54-fe66 fe68-fe6b ff01-ff3d ff3f
ff41-ffbe ffc2-ffc7 ffca-ffcf ffd2-ffd7 ffda-ffdc ffe0-ffe2 ffe5-ffe6 ffe9-ffec 10100-10102 10107-10133
10140-10178 1018a-1018b 102e1-102fb 10780-10785 10787-107b0 107b2-107ba 16fe2-16fe3 1aff0-1aff3 1aff5-1affb
1affd-1affe 1b000-1b122 1b132 1b150-1b152 1b155 1b164-1b167 1d2c0-1d2d3 1d2e0-1d2f3 1d360-1d378 1d400-1d454
1d456-1d49c 1d49e-1d49f 1d4a2 1d4a5-1d4a6 1d4a9-1d4ac 1d4ae-1d4b9 1d4bb 1d4bd-1d4c3 1d4c5-1d505 1d507-1d50a
1d50d-1d514 1d516-1d51c 1d51e-1d539 1d53b-1d53e 1d540-1d544 1d546 1d54a-1d550 1d552-1d6a5 1d6a8-1d7cb
1d7ce-1d7ff 1df00-1df1e 1df25-1df2a 1e030-1e06d 1f100-1f10c 1fbf0-1fbf9 20000-2a6df 2a700-2b739 2b740-2b81d
2b820-2cea1 2ceb0-2ebe0 2f800-2fa1d 30000-3134a 31350-323af
"""


@cache
def _bounds() -> list[int]:
    """First code point of a range, first behind it, first of the next, ... (read at the first name beyond ASCII)."""
    pairs = (word.partition("-") for word in _RANGES.split())
    return [bound for low, _, high in pairs for bound in (int(low, 16), int(high or low, 16) + 1)]


def is_display_safe(untrusted_name: bytes) -> bool:
    """Whether the name is valid UTF-8 made only of characters that can be shown without deceiving anyone."""
    try:
        text = untrusted_name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    if text.isascii():
        return text.isprintable()
    return all(" " <= c <= "~" or bisect_right(_bounds(), ord(c)) % 2 for c in text)
