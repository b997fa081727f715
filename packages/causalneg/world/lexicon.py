"""The words of the world: name parts by type, relations and how they are put, and sentences of no account.

Over 400 lines: word lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

Kind = Literal["person", "company", "town", "film", "event", "product", "number"]
"""What an entity is; a number is no entity, but takes the place of one in a fact."""

ENTITY_KINDS: tuple[Kind, ...] = ("person", "company", "town", "film", "event", "product")
"""All kinds that have names."""

Side = Literal["forward", "inverse"]
"""Whether the subject of a sentence is the subject of the fact, or its object."""


def _fused(first: str, second: str) -> tuple[str, ...]:
    return tuple(a + b for a, b in product(first.split(), second.split()))


WOMEN = tuple(
    "Ada Agnes Berta Carla Celia Clara Dora Edith Elsa Emma Flora Freda Greta Hanna Helen Hilda Ida Irene "
    "Julia Karin Laura Lena Lydia Mabel Marta Mira Nadia Nora Olga Paula Rosa Ruth Sonja Stella Sylvia "
    "Thea Ursula Vera Wanda Zita".split()
)
MEN = tuple(
    "Adam Albert Anton Bruno Carl Conrad David Edgar Emil Ernest Felix Frank Georg Gustav Hugo Isaac Ivan "
    "Jacob Jonas Julius Karel Kaspar Leo Lorenz Lucas Magnus Martin Max Nils Oscar Otto Paul Ralph Rufus "
    "Samuel Simon Theo Victor Walter Werner".split()
)

NAME_PARTS: dict[Kind, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "person": (
        WOMEN + MEN,
        _fused(
            "Tol Mar Ves Hal Dren Cor Bel Lin Sar Wex Fal Gor Pel Rud Nor Ost Ard Kem Tris Yar",
            "vane wick mer den sby low rick ton gate holt ling ford",
        ),
    ),
    "company": (
        _fused(
            "Al Bri Cas Dom Er Fen Gal Hes Iv Kor Lum Mer Ox Per",
            "dara nex tello vium mont quin sora lec pax rina dine vero",
        ),
        tuple(
            "Works Mills Foundry Bank Press Brewery Shipping Textiles Steel Glass Chemicals Motors "
            "Airways Mining Timber Paper Insurance Holdings Railways Pottery Dairies Tobacco Electric "
            "Cement Pharma Optics Rubber Salt Stores Trading".split()
        ),
    ),
    "town": (
        tuple(
            "Port Upper Lower Old New East West North South Great Little High Mount Castle Abbey Bishop "
            "Canon Market Royal Temple Nether Long Broad Fair Stone Bridge Glen Lake Chapel Forest".split()
        ),
        _fused(
            "Ash Brack Crom Dun Elm Hather Kings Lang Mell Oak Raven Wat",
            "bury combe ford leigh mouth stead thorpe worth wold by dale field",
        ),
    ),
    "film": (
        tuple(
            f"The {adjective}"
            for adjective in (
                "Silent Broken Golden Hidden Distant Hollow Burning Frozen Gentle Crooked Empty Savage "
                "Patient Wandering Borrowed Scarlet Quiet Bitter Restless Painted Seventh Lonely Sunken "
                "Velvet Blind Narrow Paper Final Northern Weary Forgotten Second Whispering Drowned Iron "
                "Secret Endless Pale Stolen Winter"
            ).split()
        ),
        tuple(
            "Orchard Harbour Mirror Garden Bridge Letter Lantern Tower Voyage River Winter Carnival "
            "Stranger Window Island Shadow Promise Kingdom Station Clockmaker Widow Tide Violin Staircase "
            "Desert Witness Meadow Thief Lighthouse Valley Circus Crown Ferry Neighbour Feast Horizon "
            "Riddle Cellar Sparrow Duel Bargain Caravan Echo Fugitive Gambler Masquerade Nightingale "
            "Passenger Sailor Tailor".split()
        ),
    ),
    "event": (
        tuple(
            "Amber Coral Ivory Jade Onyx Opal Pearl Ruby Topaz Cobalt Crimson Indigo Saffron Violet "
            "Copper Silver Bronze Maple Cedar Willow Juniper Laurel Linden Hazel Rowan Aspen Clover "
            "Thistle Heather Lilac Poppy Tulip Orchid Dahlia Primrose Marigold Jasmine Lavender Zephyr "
            "Comet Aurora Solstice Equinox Meridian Zenith Lunar Boreal Polar Alpine Summit".split()
        ),
        tuple(
            "Cup Regatta Congress Gala Derby Marathon Biennale Festival Trophy Symposium Tournament Rally "
            "Carnival Assembly Prize Contest Games Parade Exhibition Open".split()
        ),
    ),
    "product": (
        tuple(
            "Falcon Heron Kestrel Osprey Raven Swallow Thrush Condor Pelican Starling Magpie Plover "
            "Puffin Swift Egret Lapwing Curlew Finch Wren Harrier Merlin Bittern Dunlin Eider Fulmar "
            "Gannet Grebe Jackdaw Linnet Mallard Nuthatch Oriole Petrel Pipit Quail Redstart Sandpiper "
            "Siskin Skylark Tern Warbler Widgeon Woodcock Avocet Bunting Cormorant Dipper Goshawk Hoopoe "
            "Kite".split()
        ),
        tuple(
            "Loom Lamp Kettle Radio Camera Tractor Clock Piano Stove Saddle Bicycle Telescope Typewriter "
            "Pump Drill Engine Scale Plough Organ Mixer Heater Whistle Chisel Lathe Mower Projector "
            "Compass Barometer Winch Furnace".split()
        ),
    ),
}
"""A name is one part of the first list and one of the second, so a name shares its words with others."""

SORT_NOUNS: dict[Kind, str] = {
    "person": "person",
    "company": "company",
    "town": "town",
    "film": "film",
    "event": "event",
    "product": "product",
    "number": "number",
}
"""What a question calls a thing of the kind."""

STAND_INS: dict[Kind, tuple[str, ...]] = {
    "person": ("She", "He"),
    "company": ("The company", "The firm", "It"),
    "town": ("The town", "The place", "It"),
    "film": ("The film", "The picture", "It"),
    "event": ("The event", "The occasion", "It"),
    "product": ("The product", "The model", "It"),
    "number": (),
}
"""How a sentence can begin with the topic of its passage without naming it."""


@dataclass(frozen=True)
class Phrase:
    """One way to say a relation.

    Args:
        base: After "did": ``"acquire {}"``; or with "be" in front: ``"be acquired by {}"``.
        past: In a statement: ``"acquired {}"``, ``"was acquired by {}"``.
    """

    base: str
    past: str


@dataclass(frozen=True)
class Relation:
    """A relation between things of two kinds.

    Args:
        name: Its name in facts.
        subject: Kind of its first part.
        object: Kind of its second part.
        forward: How to say it of the first part; synonyms.
        inverse: How to say it of the second part; empty where that is a number.
        dated: Whether it has a year.
    """

    name: str
    subject: Kind
    object: Kind
    forward: tuple[Phrase, ...]
    inverse: tuple[Phrase, ...]
    dated: bool = True

    def phrases(self, side: Side) -> tuple[Phrase, ...]:
        """The ways to say it of the first part (forward) or of the second (inverse)."""
        return self.forward if side == "forward" else self.inverse

    def kind(self, side: Side) -> Kind:
        """Kind of the subject of a sentence that says it this way round."""
        return self.subject if side == "forward" else self.object

    def other(self, side: Side) -> Kind:
        """Kind of what the sentence says it with."""
        return self.object if side == "forward" else self.subject


def _phrases(text: str) -> tuple[Phrase, ...]:
    """Read ``"take/took {} to court; sue/sued"``; the slot is at the end where it is not shown."""
    found = []
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        verb, _, rest = entry.partition(" ")
        base, past = verb.split("/")
        tail = f" {rest}" if rest else ""
        tail += "" if "{}" in tail else " {}"
        found.append(Phrase(base + tail, past + tail))
    return tuple(found)


def _relation(
    name: str, subject: Kind, object: Kind, forward: str, inverse: str, dated: bool = True
) -> Relation:
    return Relation(name, subject, object, _phrases(forward), _phrases(inverse), dated)


_TABLE = (
    # Of companies.
    _relation("founded", "person", "company",
              "found/founded; establish/established; set/set up; start/started",
              "be/was founded by; be/was established by; be/was set up by; be/was started by"),
    _relation("led", "person", "company",
              "lead/led; run/ran; manage/managed; be/was in charge of",
              "be/was led by; be/was run by; be/was managed by; have/had {} at its head"),
    _relation("joined", "person", "company",
              "join/joined; be/was hired by; be/was recruited by; take/took a post at",
              "hire/hired; recruit/recruited; take/took on; engage/engaged"),
    _relation("left", "person", "company",
              "leave/left; resign/resigned from; quit/quit; give/gave up a post at",
              "lose/lost; part/parted with; be/was left by; let/let {} go"),
    _relation("acquired", "company", "company",
              "acquire/acquired; buy/bought; take/took over; purchase/purchased",
              "be/was acquired by; be/was bought by; be/was taken over by; be/was sold to"),
    _relation("sued", "company", "company",
              "sue/sued; take/took {} to court; bring/brought a case against; file/filed a claim against",
              "be/was sued by; be/was taken to court by; face/faced a case from; face/faced a claim from"),
    _relation("supplied", "company", "company",
              "supply/supplied; sell/sold parts to; deliver/delivered goods to; provide/provided parts for",
              "be/was supplied by; get/got parts from; receive/received goods from; buy/bought parts from"),
    _relation("moved", "company", "town",
              "move/moved to; relocate/relocated to; transfer/transferred its seat to; "
              "shift/shifted its office to",
              "become/became the seat of; be/was chosen as a new seat by; receive/received the office of"),
    _relation("built", "company", "town",
              "open/opened a plant in; build/built a plant in; set/set up a factory in; "
              "start/started a factory in",
              "gain/gained a plant from; be/was picked for a plant by; get/got a factory from"),
    _relation("launched", "company", "product",
              "launch/launched; introduce/introduced; bring/brought out; release/released",
              "be/was launched by; be/was introduced by; be/was brought out by; be/was released by"),
    _relation("licensed", "company", "product",
              "license/licensed; buy/bought the rights to; obtain/obtained a licence for",
              "be/was licensed by; be/was made under licence by; be/was passed to"),
    _relation("dropped", "company", "product",
              "drop/dropped; stop/stopped making; withdraw/withdrew; give/gave up",
              "be/was dropped by; be/was withdrawn by; be/was given up by"),
    _relation("sponsored", "company", "event",
              "sponsor/sponsored; pay/paid for; give/gave money to; fund/funded",
              "be/was sponsored by; be/was paid for by; get/got money from; be/was funded by"),
    _relation("employed", "company", "number",
              "employ/employed {} people; have/had {} workers; give/gave work to {} people", ""),
    # Of people.
    _relation("born", "person", "town",
              "be/was born in; come/came into the world in; begin/began life in",
              "be/was the birthplace of; see/saw the birth of; be/was the native town of"),
    _relation("settled", "person", "town",
              "settle/settled in; move/moved to; make/made a home in; take/took a house in",
              "become/became the home of; welcome/welcomed; be/was chosen as a home by"),
    _relation("departed", "person", "town",
              "leave/left; move/moved away from; depart/departed from; turn/turned away from",
              "lose/lost; be/was left by; see/saw {} move away"),
    _relation("taught", "person", "person",
              "teach/taught; train/trained; tutor/tutored; be/was the teacher of",
              "be/was taught by; be/was trained by; learn/learned from; be/was a pupil of"),
    _relation("succeeded", "person", "person",
              "succeed/succeeded; replace/replaced; take/took over from; step/stepped into the post of",
              "be/was succeeded by; be/was replaced by; hand/handed over to; give/gave way to"),
    _relation("beat", "person", "person",
              "beat/beat; defeat/defeated; win/won against; overcome/overcame",
              "lose/lost to; be/was beaten by; be/was defeated by; be/was overcome by"),
    _relation("engaged", "person", "person",
              "engage/engaged; employ/employed; take/took on; give/gave work to",
              "be/was engaged by; be/was employed by; work/worked for; get/got work from"),
    _relation("won", "person", "event",
              "win/won; come/came first at; take/took the top place at; triumph/triumphed at",
              "be/was won by; have/had {} as its winner; bring/brought victory to"),
    _relation("judged", "person", "event",
              "judge/judged; sit/sat on the jury of; be/was a judge at; decide/decided",
              "be/was judged by; have/had {} on its jury; be/was decided by"),
    _relation("designed", "person", "product",
              "design/designed; draw/drew up; be/was the designer of; devise/devised",
              "be/was designed by; be/was drawn up by; be/was devised by"),
    _relation("tested", "person", "product",
              "test/tested; try/tried out; examine/examined; inspect/inspected",
              "be/was tested by; be/was tried out by; be/was examined by; be/was inspected by"),
    # Of films.
    _relation("directed", "person", "film",
              "direct/directed; be/was the director of; be/was in the chair for",
              "be/was directed by; have/had {} as its director; be/was shot under the direction of"),
    _relation("produced", "person", "film",
              "produce/produced; be/was the producer of; raise/raised the money for",
              "be/was produced by; have/had {} as its producer; owe/owed its money to"),
    _relation("wrote", "person", "film",
              "write/wrote; be/was the writer of; pen/penned",
              "be/was written by; have/had {} as its writer; be/was penned by"),
    _relation("scored", "person", "film",
              "score/scored; compose/composed the music for; be/was the composer of",
              "be/was scored by; have/had music by; have/had {} as its composer"),
    _relation("filmed", "film", "town",
              "be/was filmed in; be/was shot in; use/used the streets of",
              "be/was the setting of; lend/lent its streets to; be/was used as a backdrop by"),
    _relation("opened", "film", "town",
              "open/opened in; be/was first shown in; have/had its premiere in",
              "see/saw the premiere of; be/was the first to show; host/hosted the premiere of"),
    _relation("lasted", "film", "number",
              "last/lasted {} minutes; run/ran for {} minutes; go/went on for {} minutes", "", False),
    # Of events and towns.
    _relation("held", "event", "town",
              "be/was held in; take/took place in; come/came to; be/was hosted by",
              "host/hosted; stage/staged; be/was the venue of"),
    _relation("drew", "event", "number",
              "draw/drew {} visitors; attract/attracted {} visitors; bring/brought in {} visitors", ""),
    _relation("housed", "town", "number",
              "have/had {} thousand residents; count/counted {} thousand residents; "
              "be/was home to {} thousand people", ""),
)  # fmt: skip

RELATIONS: dict[str, Relation] = {relation.name: relation for relation in _TABLE}
"""All relations by name."""

REMARKS: dict[Kind, tuple[tuple[str, ...], ...]] = {
    "person": (
        (
            "Friends spoke of a calm manner and a dry wit.",
            "Those who knew this person recalled calm and dry wit.",
        ),
        (
            "Early years were spent in modest rooms above a shop.",
            "Childhood passed in modest rooms over a shop.",
        ),
        (
            "A fondness for long walks and strong tea never faded.",
            "Long walks and strong tea stayed lifelong joys.",
        ),
        (
            "Letters from the period show a careful and stubborn mind.",
            "The letters of those days show a careful, stubborn mind.",
        ),
        (
            "Money was short at first, and help came from relatives.",
            "At first money was scarce, and relatives had to help.",
        ),
        (
            "Newspapers of the day printed portraits now and then.",
            "Now and then the papers of the day printed a portrait.",
        ),
        (
            "In later life the garden took up most mornings.",
            "Most mornings of later life went into the garden.",
        ),
        (
            "Colleagues praised a gift for settling quarrels.",
            "A gift for ending quarrels was praised by colleagues.",
        ),
    ),
    "company": (
        (
            "The workshops stood beside a canal and were lit by gas.",
            "Its gas-lit workshops lay along a canal.",
        ),
        (
            "Wages were paid on Fridays and seldom came late.",
            "Pay day was Friday, and wages were seldom late.",
        ),
        (
            "The books were kept with great care for many years.",
            "For many years the accounts were kept with great care.",
        ),
        (
            "A brass band made up of staff played on summer evenings.",
            "On summer evenings a brass band of its staff played.",
        ),
        (
            "Trade was slow in wet seasons and brisk in dry ones.",
            "Business was brisk in dry seasons and slow in wet ones.",
        ),
        (
            "Visitors remembered the smell of oil and warm dust.",
            "A smell of oil and warm dust stayed with visitors.",
        ),
        (
            "Its red delivery vans were a familiar sight on the roads.",
            "On the roads its red delivery vans were well known.",
        ),
        (
            "The owners kept prices low and quality steady.",
            "Prices were kept low and quality steady by the owners.",
        ),
    ),
    "town": (
        (
            "Narrow lanes lead down from the hill to the market square.",
            "From the hill narrow lanes run down to the market square.",
        ),
        (
            "The old bridge was rebuilt in pale stone after a flood.",
            "After a flood the old bridge was rebuilt in pale stone.",
        ),
        (
            "Winters are mild there, and fog is common in autumn.",
            "There are mild winters there and foggy autumns.",
        ),
        (
            "A weekly market sells cheese, rope and second-hand tools.",
            "Cheese, rope and used tools are sold at a weekly market.",
        ),
        (
            "Its library holds maps that are older than the town hall.",
            "The library has maps older than the town hall.",
        ),
        ("Fishing and weaving gave work to most families.", "Most families lived by fishing and weaving."),
        ("Two railway lines meet just outside the walls.", "Just outside the walls two railway lines meet."),
        (
            "Children still race paper boats on the mill stream.",
            "On the mill stream children still race paper boats.",
        ),
    ),
    "film": (
        (
            "Critics liked the light but found the ending too long.",
            "The light pleased critics; the ending seemed too long to them.",
        ),
        ("Only two prints are known to have survived.", "No more than two prints are thought to survive."),
        ("The costumes came from a theatre that had closed.", "A closed theatre had given the costumes."),
        (
            "Rain delayed the outdoor scenes by several weeks.",
            "Several weeks were lost to rain in the outdoor scenes.",
        ),
        (
            "The story follows two sisters through a hard winter.",
            "Two sisters and a hard winter make up the story.",
        ),
        (
            "Audiences came back for the songs more than the plot.",
            "It was the songs more than the plot that drew audiences back.",
        ),
        (
            "A restored copy was found among the papers of a collector.",
            "Among the papers of a collector a restored copy was found.",
        ),
        (
            "The posters showed a ladder against a yellow sky.",
            "A ladder against a yellow sky was on the posters.",
        ),
    ),
    "event": (
        (
            "Tickets were sold from a booth beside the station.",
            "A booth beside the station sold the tickets.",
        ),
        (
            "Rain fell on the closing day, yet few people left early.",
            "On the closing day it rained, but few left early.",
        ),
        ("A choir sang while the flags were raised.", "While the flags went up a choir sang."),
        ("Local bakers prepared a cake for every guest.", "Every guest had a cake from local bakers."),
        ("The rules were printed on a single sheet of paper.", "A single sheet of paper held all the rules."),
        (
            "Hotels were full, so some visitors slept in tents.",
            "With hotels full, some visitors had to sleep in tents.",
        ),
        (
            "Speeches were short, and the music went on past midnight.",
            "The music went on past midnight after short speeches.",
        ),
        (
            "A small museum keeps the medals and the programmes.",
            "Medals and programmes are kept in a small museum.",
        ),
    ),
    "product": (
        (
            "It came in green or black and had a leather handle.",
            "A leather handle and a green or black coat were standard.",
        ),
        ("Repair shops praised its simple parts.", "Its simple parts were praised in repair shops."),
        (
            "The manual ran to nine pages with many drawings.",
            "Nine pages with many drawings made up the manual.",
        ),
        (
            "Collectors pay well for one in its first box.",
            "One in its first box fetches a good price among collectors.",
        ),
        ("Early versions were noisy and grew warm in use.", "In use the early versions grew warm and noisy."),
        (
            "A lighter version was planned but never sold.",
            "There were plans for a lighter version that never sold.",
        ),
        (
            "Farmers liked it because it could stand the cold.",
            "Because it could stand the cold, farmers liked it.",
        ),
        ("Its badge shows a bird above three waves.", "A bird above three waves is shown on its badge."),
    ),
    "number": (),
}
"""Sentences that state no fact, by the kind of the topic; the wordings of one remark mean the same."""
