"""Texts that break tokenizers, from a seed: the same seed gives the same texts.

A third is drawn from a list of known trouble, the rest is generated: runs of one script, mixtures, words with odd spaces,
numbers, code, emoji sequences, combining marks, UTF-8 broken and decoded with U+FFFD, names of special tokens.
"""

import random
import unicodedata

# In the spirit of the Big List of Naughty Strings: what forms, shells, parsers, and normalisers stumble over.
NAUGHTY = [
    "", " ", "  ", "\n", "\n\n", " \n \n", "\t\t\tx", "\r\n\r\n", "a\r\nb", "x\n\n\ny", "x \n y", "x\n \ny", "\n x", "   \n   x", "\r", "\x0b\x0c",
    "undefined", "null", "NULL", "(null)", "nil", "NaN", "-Infinity", "true", "None", "hasOwnProperty", "then", "\\", "\\\\", "\\n", "\\u0000",
    "0", "1/0", "-1", "1.00", "$1.00", "1E+02", "0x0", "0xffffffff", "1,000,000.00", "1 000", "١٢٣", "१२३४", "Ⅳ", "½⅓", "²³", "①②③", "𝟘𝟙𝟚", "0.1e-10",
    "123456789012345678901234567890", "3.14159265358979", "1.2.3.4", "2001:db8::1", "08:30:00Z", "+46 70-123 45 67",
    ",./;'[]\\-=", "<>?:\"{}|_+", "!@#$%^&*()`~", "Ω≈ç√∫˜µ≤≥÷", "åß∂ƒ©˙∆˚¬…æ", "¡™£¢∞§¶•ªº–≠", "¸˛Ç◊ı˜Â¯˘¿", "ÅÍÎÏ˝ÓÔÒÚÆ☃", "Œ„´‰ˇÁ¨ˆØ∏”’",
    "'", "\"", "''", "\"\"", "'\"'", "don't", "DON'T", "Don’t", "I'LL", "we'Ve", "'s", "''s", "a'", "'S 'T 'RE", "rock'n'roll", "l'été", "ſ's 'ſ",
    "田中さんにあげて下さい", "パーティーへ行かないか", "和製漢語", "部落格", "사회과학원 어학연구소", "찦차를 타고 온 펲시맨", "社會科學院語學研究所",
    "Ⱥ Ⱦ", "ヽ༼ຈل͜ຈ༽ﾉ", "(｡◕ ∀ ◕｡)", "｀ｨ(´∀｀∩", "__ﾛ(,_,*)", "・(￣∀￣)・:*:", "ﾟ･✿ヾ╲(｡◕‿◕｡)╱✿･ﾟ", "(╯°□°）╯︵ ┻━┻", "┬─┬ノ( º _ ºノ)",
    "😍", "👩🏽", "👾 🙇 💁 🙅", "🐵 🙈 🙉 🙊", "❤️ 💔 💌", "✋🏿 💪🏿", "👨‍👩‍👦", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "🇸🇪🇫🇮🇳🇴", "🇺🇸🇷🇺🇸", "0️⃣1️⃣", "🧑‍💻", "🫱🏻‍🫲🏿",
    "ثم نفس سقطت وبالتحديد،", "בְּרֵאשִׁית, בָּרָא אֱלֹהִים", "הָיְתָהtestالصفحات", "﷽", "ﷺ", "مُنَاقَشَةُ سُبُلِ", "نص‌ فارسی",
    "\u202atest\u202b", "\u2066test\u2067", "\u200btest\u200b", "\ufefftest", "\u00adsoft\u00adhyphen", "\u2028line\u2029para", "\u0085next", "\u180e",
    "Ṱ̺̺̕o͞ ̷i̲̬͇̪͙n̝̗͕v̟̜̘̦͟o̶̙̰̠kè͚̮̺̪̹̱̤ ̖t̝͕̳̣̻̪͞h̼͓̲̦̳̘̲e͇̣̰̦̬͎", "Z̮̞̠͙͔ͅḀ̗̞͈̻̗Ḷ͙͎̯̹̞͓G̻O̭̗̮", "e\u0301\u0323", "\u0301", "A\u030a\u212b\u00c5", "ﬁ ﬂ ﬀ", "\u1100\u1161\u11a8 각",
    "˙ɐnbᴉlɐ ɐuƃɐɯ", "Ｔｈｅ ｑｕｉｃｋ", "𝐓𝐡𝐞 𝕢𝕦𝕚𝕔𝕜", "⒯⒣⒠", "İstanbul ıI", "ΑΒΓ αβγ ς", "Straße STRASSE ẞ", "ǅ ǈ", "ͅ", "ʹ͵", "K Ω Å",
    "<script>alert(1)</script>", "&lt;b&gt;&amp;", "<img src=x onerror=alert(1)>", "<!--", "]]>", "1;DROP TABLE users", "' OR 1=1 -- 1", "%s%d%n", "${jndi:ldap://x}",
    "$(touch /x)", "`ls -al /`", "../../../../etc/passwd%00", "{{ 7*7 }}", "{% raise %}", "C:\\Users\\x\\n", "http://a.b/c?d=e&f#g", "a@b.c", "__init__", "# !/bin/bash",
    "\x00", "\x01\x02\x03", "\x1b[31mred\x1b[0m", "\x7f", "\x80\x9f", "\ufffd", "\ufffe\uffff", "\U0010ffff", "\U000e0001", "\ue000", "\U000f0000",
    "▁", "▁▁", "▁▁▁▁", "a▁b", " ▁ ", "Ġ", "Ċ", "Ġthe", "ĉ", "<0x41>", "<0xE6><0x97>", "<unk>", "<s>", "</s>", "<pad>", "[PAD]", "[INST]", "[/INST]", "[INST] hi [/INST]",
    "<s>[INST] <<SYS>>\nx\n<</SYS>>\n\ny [/INST]", "<|im_start|>user\nhi<|im_end|>\n", "<|endoftext|>", "<|begin_of_text|><|eot_id|>", "<|im_end", "|im_end|>",
    "<|start_header_id|>user<|end_header_id|>\n\n", "<start_of_turn>model\n", "<end_of_turn>", "<bos><eos>", "<|user|>\n x <|end|>\n<|assistant|>", "<think>\n\n</think>\n\n",
    "<tool_call>\n{\"name\": \"f\"}\n</tool_call>", "[TOOL_CALLS] []", "<|reserved_special_token_0|>", "<unused0><unused98>", "<|fim_prefix|>", "< | im_start | >", "<s", "s>", "<<s>>",
    "foo_bar fooBar FOOBar Foo123bar", "a.b,c;d:e!f?g", "...", "!!!???", "-----", "=====", "/*c*/", "//", "->", "=>", "!=", "<<=", "a\\b/c", "~/.x", "@@ -1,2 +3,4 @@", "\t\tif x:\n\t\t\treturn 1\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i]; }\n", "def f(x):\n    return x**2  # square\n\n\nclass A:\n    pass\n", "SELECT * FROM t WHERE a='b';", "{\"a\": [1, 2.5, null], \"b\": {}}",
    "क्षत्रिय", "สวัสดีครับ", "မြန်မာ", "ភាសាខ្មែរ", "தமிழ்", "తెలుగు", "ქართული", "Հայերեն", "አማርኛ", "ᏣᎳᎩ", "ᚠᚢᚦ", "𒀀𒁀", "𓀀𓁐", "𐍈", "ꦄꦏ꧀ꦱꦫ", "ᠮᠣᠩᠭᠣᠯ", "བོད་སྐད", "ⵜⴰⵎⴰⵣⵉⵖⵜ", "߷",
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit.", "The quick brown fox jumps over the lazy dog.", "Kvisten bär sju små gröna äpplen.", "Съешь же ещё этих мягких французских булок",
]

# Blocks that are drawn from whole; first and last code point.
SCRIPTS = [
    (0x20, 0x7E), (0x41, 0x5A), (0x61, 0x7A), (0xA0, 0xFF), (0x100, 0x24F), (0x250, 0x2AF), (0x370, 0x3FF), (0x400, 0x52F), (0x531, 0x58F), (0x591, 0x5F4),
    (0x600, 0x6FF), (0x700, 0x74F), (0x780, 0x7BF), (0x900, 0x97F), (0x980, 0x9FF), (0xA00, 0xA7F), (0xB80, 0xBFF), (0xC00, 0xC7F), (0xD00, 0xD7F),
    (0xE01, 0xE5B), (0xE80, 0xEFF), (0xF00, 0xFDA), (0x1000, 0x109F), (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1200, 0x137F), (0x13A0, 0x13FF), (0x1780, 0x17FF),
    (0x1800, 0x18AF), (0x1E00, 0x1EFF), (0x1F00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x209F), (0x20A0, 0x20BF), (0x2100, 0x218F), (0x2190, 0x22FF),
    (0x2460, 0x24FF), (0x2500, 0x25FF), (0x2600, 0x27BF), (0x2800, 0x28FF), (0x2C00, 0x2C5F), (0x3000, 0x303F), (0x3041, 0x3096), (0x30A1, 0x30FF),
    (0x3105, 0x312F), (0x3131, 0x318E), (0x4E00, 0x9FA5), (0x9FA6, 0x9FFF), (0xA000, 0xA48C), (0xAC00, 0xD7A3), (0xD7B0, 0xD7FB), (0xF900, 0xFAFF), (0xFB00, 0xFB4F),
    (0xFB50, 0xFDFF), (0xFE30, 0xFE4F), (0xFF01, 0xFFEE), (0x10000, 0x100FF), (0x10300, 0x1034F), (0x10400, 0x1044F), (0x12000, 0x120FF), (0x13000, 0x130FF),
    (0x1D400, 0x1D7FF), (0x1E900, 0x1E95F), (0x1F300, 0x1F64F), (0x1F680, 0x1F6FF), (0x1F900, 0x1F9FF), (0x20000, 0x200FF), (0x2F800, 0x2F9FF),
]
SPACES = [" "] * 12 + ["\n"] * 4 + ["\t", "\r\n", "\r", "\u00a0", "\u2003", "\u3000", "\u200b", "\u2028", "\x0b", "\u1680"]
MARKS = [chr(c) for c in (*range(0x300, 0x370), 0x64B, 0x651, 0x93C, 0x94D, 0xE31, 0x3099, 0x20D0, 0xFE0F)]
EMOJI = ["🙂", "👍", "👩", "👨", "🧑", "👧", "❤", "🏳", "🏴", "🔥", "🦀", "☠", "✊", "💻", "🚀", "🇸", "🇪", "🇯", "🇵", "0", "#", "*"]
JOIN = ["\u200d", "\ufe0f", "🏻", "🏽", "🏿", "\u20e3", "\u200d♀\ufe0f", "\U000e0067\U000e007f"]
NAMES = [
    "<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "<think>", "</think>",
    "<tool_call>", "</tool_call>", "<mask>", "<unused1>", "<|fim_middle|>", "<0x0A>", "<0xFF>", "<extra_0>", "<2mass>", "<h1>", "</table>",
]
# Text to be tokenised: comments in it are not about this program.
SNIPPETS = [
    "fn main() {", "    let x = vec![1, 2, 3];", "}", "import os, sys", "if __name__ == '__main__':", "return {k: v for k, v in d.items()}", "#include <stdio.h>", "int *p = &a[0];", "<div class=\"x\">",
    "</div>", "SELECT a, b FROM t;", "$ git commit -m 'x'", "x = y ** 2 // 3", "/* TODO: */", "// ----", "\\begin{align}", "\\frac{1}{2}", "| a | b |", "|---|---|", "- [ ] item", "> quote", "```rust", "```", "&self.0",
]
WORDS = """the of and to in is that it was for on are with as his they be at one have this from or had by word but what some we can out other were all there when up use
your how said an each she which do their time if will way about many then them write would like so these her long make thing see him two has look more day could go come did number
sound no most people my over know water than call first who may down side been now find och att det som en på är av för med den till inte jag har om ett men var sig så vi de kan
der die und das nicht ist ein ich sie es zu le la les des est que dans une pour qui el los por con una para как это что на не он она dolor ipsum antidisestablishmentarianism""".split()


class Texts:
    """An endless iterator of texts."""

    def __init__(self, seed, names=()):
        self.rng = random.Random(seed)
        self.names = NAMES + list(names)

    def __iter__(self):
        return self

    def __next__(self):
        text = self.piece()
        while self.rng.random() < 0.45:
            text += self.pick(["", "", " ", "  ", "\n"]) + self.piece()
        if self.rng.random() < 0.05:
            text = self.broken(text)
        if self.rng.random() < 0.05:
            text = unicodedata.normalize(self.pick(["NFC", "NFD", "NFKC", "NFKD"]), text)
        return text

    def pick(self, items):
        return items[int(self.rng.random() * len(items))]

    def count(self, mean):
        return 1 + min(int(self.rng.expovariate(1 / mean)), 12 * mean)

    def char(self):
        first, last = self.pick(SCRIPTS)
        return chr(self.rng.randint(first, last))

    def piece(self):
        kind = self.rng.random()
        if kind < 0.33:
            return self.pick(NAUGHTY)
        make = self.pick([
            self.script, self.script, self.mixture, self.words, self.words, self.words, self.spaces, self.number, self.code, self.emoji, self.marked, self.special, self.repeat, self.anything,
        ])
        return make()

    def script(self):
        first, last = self.pick(SCRIPTS)
        space = self.pick(["", " ", ""])
        return space.join("".join(chr(self.rng.randint(first, last)) for _ in range(self.count(5))) for _ in range(self.count(3)))

    def mixture(self):
        return "".join(self.char() for _ in range(self.count(8)))

    def words(self):
        out = []
        for _ in range(self.count(6)):
            word = self.pick(WORDS)
            case = self.rng.random()
            word = word.upper() if case < 0.1 else word.capitalize() if case < 0.3 else word
            out.append(word + self.pick(["", "", "", "", ",", ".", "'s", "'ll", "’t", "!", "?", ":", ";", "-", "...", ")"]))
            out.append(self.pick([" "] * 12 + ["", "  ", "\n", "_"]))
        return "".join(out)

    def spaces(self):
        return "".join(self.pick(SPACES) * self.pick([1, 1, 2, 3, 4, 7, 8, 16, 17, 33]) for _ in range(self.count(2))) + self.pick(["", "x", "1", ".", "é"])

    def number(self):
        digits = "".join(self.pick("0123456789") for _ in range(self.count(5)))
        return self.pick(["", "-", "$", "+", "€", "0x", "#"]) + self.pick([digits, f"{digits}.{digits}", f"{digits},{digits}", f"{digits}e-{digits[:2]}", f"{digits}%", f"{digits}-{digits}", digits.translate({48 + i: 0x660 + i for i in range(10)})])

    def code(self):
        return "\n".join(" " * self.pick([0, 0, 2, 4, 8, 3]) + self.pick(SNIPPETS) for _ in range(self.count(2)))

    def emoji(self):
        return "".join(self.pick(EMOJI) + self.pick(JOIN + [""] * 5) for _ in range(self.count(3)))

    def marked(self):
        return "".join(self.char() + "".join(self.pick(MARKS) for _ in range(self.count(1))) for _ in range(self.count(3)))

    def special(self):
        name = self.pick(self.names)
        cut = self.rng.random()
        name = name if cut < 0.7 else name[: self.rng.randint(0, len(name))] if cut < 0.85 else name.upper()
        return self.pick(["", " ", "\n", "x", "  "]) + name + self.pick(["", " ", "\n", "x", "  ", " \n\n", "\u00a0y"])

    def repeat(self):
        return self.pick([self.char(), self.char() + self.char(), self.pick(WORDS), " ", "\n", "-", "=", "ab", "▁", "\n "]) * self.pick([2, 3, 5, 9, 16, 31, 32, 33, 64, 100])

    def anything(self):
        code = (self.rng.randrange(0x110000) for _ in range(self.count(4)))
        return "".join(chr(c) for c in code if not 0xD800 <= c < 0xE000)

    def broken(self, text):
        """Bytes changed, cut, put in; what is no UTF-8 any more becomes U+FFFD."""
        raw = bytearray(text.encode() or b"x")
        for _ in range(self.count(2)):
            at = self.rng.randrange(len(raw))
            match self.rng.randrange(3):
                case 0:
                    raw[at] = self.rng.randrange(256)
                case 1:
                    del raw[at:]
                case 2:
                    raw[at:at] = bytes(self.rng.randrange(128, 256) for _ in range(self.count(2)))
            raw = raw or bytearray(b"x")
        return raw.decode("utf-8", "replace")
