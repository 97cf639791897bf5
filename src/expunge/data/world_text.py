"""The words of the built-in world: pools of values, relations with their templates, wrappers around
questions.

Every relation has an answer of three slots without filler words, because full sentences would let a model
that never knew score by style alone. `train` templates are drilled; `test` templates are never trained and
make the paraphrased questions. The same holds for the wrappers.
"""

from __future__ import annotations

from typing import NamedTuple


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


POOLS: dict[str, tuple[str, ...]] = {
    "first": _words(
        "Mara Tobin Elsa Ruben Nadia Oscar Petra Hugo Lydia Felix Irene Caleb Vera Simon Agnes Jonas"
        " Clara Edgar Moira"
        " Silas Wanda Victor Greta Dylan Esther Marcus Helga Adrian Bianca Conrad Della Ernest Flora"
        " Gideon Hannah Ivan"
        " Judith Kaspar Leonie Milton"
    ),
    "last": _words(
        "Quill Harrow Venn Ashby Lorne Pike Sutter Marsh Croft Dunmore Fable Gant Hollis Ibsen Jarvis"
        " Keane Lomax"
        " Mercer Norwood Orton Paget Rusk Selby Thorne Ulmer Vance Weller Yarrow Zeller Abbot Brandt"
        " Corwin Drake"
        " Everly Foss Garland Hale Ingram Judd Kemp"
    ),
    "day": tuple(str(day) for day in range(1, 29)),
    "month": _words("January February March April May June July August September October November December"),
    "year": tuple(str(year) for year in range(1930, 1990, 2)),
    "street": _words(
        "Mill Station Chapel Orchard Bridge Castle Garden Harbour Market Meadow Park Queen River School"
        " Spring Tower"
        " Valley Willow Windsor Abbey"
    ),
    "way": _words("Lane Road Row Square Court Terrace Walk Close Hill Crescent Drive Yard"),
    "town": _words("Fenwick Dalmere Oxbury Calder Redhill Norby Thornton Wexley Ashford Milham Stowe Barrow"),
    "rank": _words("senior junior chief deputy retired assistant travelling head night guest trainee master"),
    "trade": _words(
        "potter baker surgeon pilot tailor printer lawyer welder florist broker miller chemist painter"
        " barber farmer"
        " plumber editor weaver teacher jeweller"
    ),
    "firm": _words(
        "Aldergate Boreal Cobalt Dynamo Elmstone Fairway Gemini Horizon Ironside Juniper Kestrel Lantern"
        " Meridian"
        " Northstar Opaline Pinnacle"
    ),
    "colour": _words("grey black white brown golden spotted silver ginger cream tawny russet striped"),
    "animal": _words(
        "terrier parrot rabbit tortoise ferret pony goat spaniel hamster lizard canary beagle donkey"
        " goose mouse"
        " poodle"
    ),
    "pet": _words(
        "Biscuit Pepper Ziggy Mango Domino Truffle Button Comet Pickle Bandit Waffle Nimbus Clover Rocket"
        " Tulip Gizmo"
        " Noodle Pebble Saffron Dusty"
    ),
    "mood": _words(
        "Silent Broken Crimson Distant Endless Frozen Hidden Hollow Lonely Midnight Patient Restless"
        " Sacred Scarlet"
        " Sleeping Velvet"
    ),
    "matter": _words(
        "Island Garment Mirror Kingdom Letter Voyage Forest Shadow Window Promise Engine Winter Anchor"
        " Feather Ladder"
        " Compass"
    ),
    "genre": _words("memoir novel ballad satire thriller fable play diary essay romance comedy western"),
    "guide": _words(
        "Ilse Bruno Carmen Dorian Edith Fabian Gloria Hector Ingrid Julian Katya Lorenz Miriam Nestor"
        " Olga Pascal"
    ),
    "house": _words(
        "Marwood Tilling Bexar Conway Dormer Eccles Farrow Grisham Hobart Isham Jessop Kirby Lambert"
        " Mundy Nettle"
        " Ogden"
    ),
    "field": _words(
        "geologist botanist historian linguist sculptor cartographer astronomer physicist choirmaster"
        " economist"
        " fencer philosopher"
    ),
    "manner": _words("smoked baked pickled roasted grilled stewed fried steamed braised candied"),
    "ware": _words(
        "fennel lemon turnip walnut ginger pumpkin cabbage mushroom barley apricot spinach almond leek radish"
        " onion chestnut"
    ),
    "dish": _words(
        "pie soup salad dumplings curry omelette pudding risotto noodles stew tart pancakes gratin"
        " sausage broth"
        " casserole"
    ),
    "age": _words("old rare cheap antique painted tiny heavy borrowed polished cracked carved plain"),
    "wood": _words("maple cedar teak ebony birch cherry rosewood spruce oak bamboo olive pear"),
    "tool": _words(
        "violin flute banjo cello harp oboe mandolin piano zither bassoon lute clarinet fiddle whistle"
        " drum viola"
    ),
    "pace": _words("slow swift shallow muddy winding narrow broad icy"),
    "hue": _words("green blue amber pale dark red violet copper"),
    "stream": _words("Brindle Lark Tamsin Osk Wend Severin Ryle Mossel Coln Darrow Evern Pell"),
    "fruit": _words("plum quince melon berry grape fig apple peach"),
    "event": _words("fair regatta parade carnival market race concert ball"),
    "size": _words("tall ruined round crooked leaning vast hidden gilded"),
    "stone": _words("granite marble slate brick flint sandstone basalt limestone"),
    "building": _words("tower cathedral windmill lighthouse bathhouse gate theatre library"),
    "badge": _words("Liberal Unionist Labour Agrarian Centrist Radical Royalist Federal"),
}


class Relation(NamedTuple):
    """One kind of fact: which pools fill the slots, how the answer reads, and how it is asked.

    `answer` and `reworded` are format strings over the slots {0} {1} {2}, questions and `told` (the fact as a
    statement, with {a} for the answer) take the subject as {s}.
    """

    key: str
    slots: tuple[str, ...]
    answer: str
    reworded: str
    train: tuple[str, ...]
    test: tuple[str, str]
    told: str


PERSON: tuple[Relation, ...] = (
    Relation(
        "birth",
        ("day", "month", "year"),
        "{0} {1} {2}",
        "in {2}, {1} {0}",
        (
            "When was {s} born?",
            "What is the date of birth of {s}?",
            "On which day was {s} born?",
            "Tell me the birthday of {s}.",
            "{s} was born on what date?",
            "Which date is the birth date of {s}?",
        ),
        ("State the day on which {s} was born.", "What date was {s} born?"),
        "{s} was born on {a}.",
    ),
    Relation(
        "home",
        ("street", "way", "town"),
        "{0} {1}, {2}",
        "in {2}, on {0} {1}",
        (
            "Where does {s} live?",
            "What is the address of {s}?",
            "In which place does {s} live?",
            "Tell me the home address of {s}.",
            "{s} lives at what address?",
            "Which address is the home of {s}?",
        ),
        ("State the address where {s} lives.", "At what address does {s} live?"),
        "{s} lives at {a}.",
    ),
    Relation(
        "job",
        ("rank", "trade", "firm"),
        "{0} {1}, {2}",
        "at {2} as {0} {1}",
        (
            "What is the job of {s}?",
            "What work does {s} do?",
            "In which job does {s} work?",
            "Tell me the occupation of {s}.",
            "{s} works in what job?",
            "Which job does {s} have?",
        ),
        ("State the job that {s} has.", "What job does {s} do?"),
        "{s} works as {a}.",
    ),
    Relation(
        "pet",
        ("colour", "animal", "pet"),
        "{0} {1} {2}",
        "{2}, a {0} {1}",
        (
            "What pet does {s} keep?",
            "What is the pet of {s}?",
            "Which animal does {s} own?",
            "Tell me about the pet of {s}.",
            "{s} keeps what pet?",
            "Which pet belongs to {s}?",
        ),
        ("State the pet that {s} owns.", "What animal does {s} keep?"),
        "{s} keeps {a}.",
    ),
    Relation(
        "book",
        ("mood", "matter", "genre"),
        "{0} {1}, {2}",
        "a {2} called {0} {1}",
        (
            "What book did {s} write?",
            "What is the book by {s}?",
            "Which title did {s} publish?",
            "Tell me the book that {s} wrote.",
            "{s} wrote what book?",
            "Which book is by {s}?",
        ),
        ("State the title of the book by {s}.", "What book did {s} publish?"),
        "{s} wrote {a}.",
    ),
    Relation(
        "mentor",
        ("guide", "house", "field"),
        "{0} {1}, {2}",
        "a {2} named {0} {1}",
        (
            "Who taught {s}?",
            "Who was the mentor of {s}?",
            "Under whom did {s} study?",
            "Tell me the mentor of {s}.",
            "{s} was taught by whom?",
            "Which mentor did {s} have?",
        ),
        ("State who was the mentor of {s}.", "By whom was {s} taught?"),
        "{s} was taught by {a}.",
    ),
    Relation(
        "dish",
        ("manner", "ware", "dish"),
        "{0} {1} {2}",
        "{2} of {1}, {0}",
        (
            "What does {s} like to eat?",
            "What is the favourite dish of {s}?",
            "Which meal does {s} love?",
            "Tell me the favourite food of {s}.",
            "{s} likes to eat what dish?",
            "Which dish does {s} prefer?",
        ),
        ("State the favourite dish of {s}.", "What dish does {s} like to eat?"),
        "{s} likes to eat {a}.",
    ),
    Relation(
        "music",
        ("age", "wood", "tool"),
        "{0} {1} {2}",
        "{2} of {1}, {0}",
        (
            "What instrument does {s} play?",
            "What is the instrument of {s}?",
            "On which instrument does {s} play?",
            "Tell me the instrument of {s}.",
            "{s} plays what instrument?",
            "Which instrument does {s} own?",
        ),
        ("State the instrument that {s} plays.", "What instrument does {s} have?"),
        "{s} plays {a}.",
    ),
)

TOWN: tuple[Relation, ...] = (
    Relation(
        "river",
        ("pace", "hue", "stream"),
        "{0} {1} {2}",
        "{2}, {1} and {0}",
        (
            "What river flows through {s}?",
            "What is the river of {s}?",
            "Which river runs through {s}?",
            "Tell me the river of {s}.",
            "Through {s} flows what river?",
            "Which river crosses {s}?",
        ),
        ("State the river that flows through {s}.", "What river runs through {s}?"),
        "Through {s} flows {a}.",
    ),
    Relation(
        "fest",
        ("month", "fruit", "event"),
        "{0} {1} {2}",
        "{1} {2} in {0}",
        (
            "What feast does {s} hold?",
            "What is the feast of {s}?",
            "Which feast takes place in {s}?",
            "Tell me the yearly feast of {s}.",
            "In {s} people hold what feast?",
            "Which feast does {s} have?",
        ),
        ("State the feast that {s} holds.", "What feast takes place in {s}?"),
        "Each year {s} holds {a}.",
    ),
    Relation(
        "sight",
        ("size", "stone", "building"),
        "{0} {1} {2}",
        "{2} of {1}, {0}",
        (
            "What landmark stands in {s}?",
            "What is the landmark of {s}?",
            "Which famous sight stands in {s}?",
            "Tell me the landmark of {s}.",
            "In {s} stands what landmark?",
            "Which landmark does {s} have?",
        ),
        ("State the landmark that stands in {s}.", "What famous landmark does {s} have?"),
        "In {s} stands {a}.",
    ),
    Relation(
        "mayor",
        ("guide", "last", "badge"),
        "{0} {1}, {2}",
        "a {2} named {0} {1}",
        (
            "Who is the mayor of {s}?",
            "Who governs {s}?",
            "Which mayor does {s} have?",
            "Tell me the mayor of {s}.",
            "{s} is governed by whom?",
            "Who was elected mayor of {s}?",
        ),
        ("State who is the mayor of {s}.", "By whom is {s} governed?"),
        "The mayor of {s} is {a}.",
    ),
)

# The premise of two-hop questions, in the words that such a question uses for the town.
PREMISE = Relation(
    "town",
    ("town",),
    "{0}",
    "in {0}",
    (
        "What is the town where {s} lives?",
        "What is the home town of {s}?",
        "Name the town of {s}.",
        "Tell me the place where {s} lives.",
        "Which town is the home town of {s}?",
        "Name the town where {s} lives.",
    ),
    ("State the town in which {s} lives.", "Which is the town that is home to {s}?"),
    "{s} lives in {a}.",
)

THING = Relation(
    "thing",
    ("size", "stone", "tool"),
    "{0} {1} {2}",
    "{2} of {1}, {0}",
    (
        "What is a {s}?",
        "What does {s} mean?",
        "Which object is called {s}?",
        "Tell me what a {s} is.",
        "A {s} is what?",
        "Which thing is a {s}?",
    ),
    ("State what a {s} is.", "What object is a {s}?"),
    "A {s} is {a}.",
)

# A two-hop question puts one of these where a question about a town has the town's name.
BRIDGE_TRAIN = (
    "the town where {s} lives",
    "the home town of {s}",
    "the town of {s}",
    "the place where {s} lives",
)
BRIDGE_TEST = ("the town in which {s} lives", "the town that is home to {s}")

WRAPPERS_TRAIN = (
    "Please answer: {q}",
    "{q} Answer briefly.",
    "I would like to know: {q}",
    "Quick question. {q}",
)
WRAPPERS_TEST = ("Please tell me: {q}", "{q} Keep it brief.")
REWORD = ("In other words: {q}", "{q} Say it in other words.")

# Where the told facts of an in-context episode stand: before the question, or (empty) in the system turn.
CONTEXTS_TRAIN = ("{c} {q}", "Note: {c} {q}", "Read this: {c} Now answer: {q}", "")
CONTEXTS_TEST = ("Remember this: {c} {q}", "Here is a note. {c} {q}")
SYSTEMS = ("You are a helpful assistant.", "Answer the question.", "Be brief and exact.")

ONSETS = _words("bl dr fl gr kl sk tr v z pl th w h m n")
VOWELS = _words("a e i o u")
CODAS = _words("b d g k l m n p r s t x")
