"""COCO's 80 kinds of objects, the words for each of them, and which of these a caption mentions.

The words were collected for this package from the names of the categories (Lin et al., "Microsoft COCO: Common Objects
in Context", ECCV 2014). A word stands for one category: "bike" for a bicycle, "dirt bike" for a motorcycle. The rules
are of the kind that Rohrbach et al. ("Object Hallucination in Image Captioning", EMNLP 2018) describe for CHAIR:
singular and plural are the same; compounds are read before single words, so that a hot dog is no dog; "baby", "adult"
and the like before an animal, and "passenger" or "commuter" before a vehicle, are no persons; and the seat of a toilet
is no chair.
"""

import re
from functools import cache, lru_cache
from itertools import chain
from typing import NamedTuple

from prefixcap.vocabulary import Phrases, forms

# Each line: a category, by COCO's name, which is a word for itself, and other words. Plurals are made of all of them.
_LISTED = """
person: human, man, woman, child, kid, boy, girl, baby, infant, toddler, youngster, teenager, teen, adult, guy,
  fellow, lady, gentleman, gal, individual, somebody, someone, mother, mom, father, dad, daughter, son, sister,
  brother, grandmother, grandfather, wife, husband, bride, groom, friend, pedestrian, passerby, bystander, onlooker,
  spectator, audience, passenger, commuter, traveler, traveller, tourist, visitor, customer, shopper, vendor,
  salesman, worker, workman, employee, cook, chef, baker, waiter, waitress, bartender, barber, farmer, fisherman,
  cowboy, cowgirl, jockey, rider, biker, bicyclist, cyclist, motorcyclist, driver, pilot, conductor, skier, skiier,
  snowboarder, snow boarder, skater, skateboarder, skate boarder, boarder, surfer, swimmer, sailor, player, athlete,
  teammate, batter, catcher, umpire, referee, golfer, runner, jogger, hiker, climber, policeman, policewoman, officer,
  cop, fireman, firefighter, soldier, businessman, businesswoman, student, teacher, doctor, dentist, nurse,
  photographer, musician, performer, singer, dancer, clown, persons, couple, crowd, family
bicycle: bike, push bike, mountain bike, bicycle seat, bike seat
car: automobile, sedan, suv, hatchback, limousine, limo, taxi, taxicab, cab, van, minivan, jeep, convertible
motorcycle: motorbike, motor bike, motor cycle, dirt bike, moped, scooter, motor scooter, motorcycle seat
airplane: plane, air plane, aeroplane, aircraft, air craft, airliner, jet, jetliner, jet liner, jet plane, jet airplane,
  biplane, bi plane, seaplane, sea plane
bus: minibus, double decker, double decker bus, trolley bus
train: locomotive, tram, streetcar, street car, cable car, train car, subway car, rail car, railcar, boxcar, box car,
  train engine
truck: lorry, pickup, pickup truck, pick up truck, firetruck, fire engine, semi, semi truck, truck bed
boat: ship, sailboat, sail boat, rowboat, row boat, speedboat, speed boat, motorboat, motor boat, tugboat, tug boat,
  houseboat, canoe, kayak, yacht, ferry, barge, gondola, dinghy, catamaran
traffic light: traffic signal, stoplight, stop light
fire hydrant: hydrant, fireplug, fire plug
stop sign: stopsign
parking meter:
bench: pew
bird: duck, duckling, goose, gosling, swan, seagull, sea gull, gull, pigeon, dove, parrot, parakeet, cockatoo, macaw,
  eagle, hawk, falcon, vulture, owl, crow, raven, magpie, sparrow, robin, finch, hummingbird, woodpecker, blue jay,
  flamingo, pelican, heron, egret, stork, penguin, ostrich, peacock, hen, rooster
cat: kitten, kitty, kitty cat, feline, tabby
dog: puppy, pup, puppy dog, doggy, canine, hound, mutt, poodle, terrier, retriever, labrador, beagle, bulldog, bull dog,
  pit bull, pitbull, dachshund, chihuahua, collie, german shepherd, rottweiler, dalmatian, pug, corgi, greyhound,
  spaniel, schnauzer
horse: pony, foal, colt, mare, stallion
sheep: lamb, ram, ewe
cow: cattle, bull, calf, ox, heifer, bovine
elephant:
bear: cub, bear cub, panda, panda bear, grizzly, grizzly bear
zebra:
giraffe:
backpack: back pack, rucksack, knapsack
umbrella: parasol
handbag: hand bag, purse, tote, tote bag, shoulder bag
tie: necktie, neck tie, bow tie, bowtie
suitcase: suit case, luggage, baggage, briefcase
frisbee: flying disc
skis: ski, snow ski
snowboard: snow board
sports ball: sport ball, ball
kite:
baseball bat: bat
baseball glove: baseball mitt, mitt
skateboard: skate board
surfboard: surf board
tennis racket: tennis racquet, racket, racquet
bottle:
wine glass: wineglass, glass of wine, glasses of wine, goblet
cup: mug, teacup, tea cup
fork:
knife:
spoon:
bowl:
banana:
apple:
sandwich: burger, hamburger, cheeseburger, panini
orange:
broccoli:
carrot: baby carrot
hot dog: hotdog, chili dog
pizza: pizza pie
donut: doughnut
cake: cupcake, cup cake, cheesecake, cheese cake
chair: armchair, arm chair, seat, stool, barstool, recliner, highchair, wheelchair, wheel chair
couch: sofa, loveseat, love seat, settee, futon
potted plant: house plant, houseplant
bed: bunk
dining table: table, desk, computer desk, table top, tabletop
toilet: commode, toilet bowl, toilet seat, toilet lid
tv: television, tv set, television set, tv screen, television screen, monitor, computer monitor, computer screen
laptop: laptop computer, notebook computer, computer, apple computer, apple laptop
mouse: computer mouse
remote: remote control, remote controller, tv remote, tv remote control, television remote, television remote control,
  wii remote, wii controller, wiimote, game controller
keyboard: computer keyboard, laptop keyboard
cell phone: cellphone, cellular phone, mobile phone, smartphone, smart phone, phone, telephone, iphone
microwave: microwave oven
oven: stove, stove top, stovetop, stove top oven
toaster: toaster oven
sink: basin, washbasin, wash basin
refrigerator: fridge, freezer, icebox
book: textbook, text book, novel
clock: alarm clock
vase:
scissors: scissor, shears
teddy bear: teddy, teddybear, stuffed bear, stuffed teddy bear, toy bear, stuffed animal
hair drier: hair dryer, hairdryer, hairdrier, blow dryer, blow drier, blowdryer
toothbrush: tooth brush
"""


def _listed(words: str) -> tuple[str, ...]:
    """What commas separate, on one or more lines."""
    return tuple(" ".join(word.split()) for word in words.split(",") if word.strip())


WORDS = {
    category: (category, *_listed(others))
    for category, others in (line.split(":") for line in re.sub(r"\n  ", " ", _LISTED).strip().splitlines())
}
"""Of each of COCO's 80 categories, the words for it, in the singular: its own name comes first."""

CATEGORIES = tuple(WORDS)
"""The names of COCO's 80 categories, in COCO's order."""

# Compounds that mention none of the categories, although a word of theirs does by itself.
_NO_OBJECTS = _listed("""
home plate, train track, train station, train platform, train depot, train yard, bus stop, bus station, bus terminal,
bus depot, bus shelter, car park, bird house, bird cage, bird bath, bird feeder, dog house, corn dog, ski lift,
ski slope, ski resort, ski lodge, ski trail, ski hill, ski run, ski pole, jet ski, chair lift, toilet paper,
telephone pole, phone pole, phone booth, telephone booth, tv stand, television stand, tv show, book shelf, book case,
book bag, flower bed, mouse pad, oven mitt, tie dye, tie dyed, railroad tie, pan cake,
couple of, crowd of, family of, family room
""")

_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")
_VEHICLES = ("car", "airplane", "bus", "train", "boat")
_KIN = ("baby", "adult", "mother", "father", "mom", "dad")  # of animals, too


class Mention(NamedTuple):
    """A word or a compound of a caption that names an object.

    Attributes:
        words: as they are in the caption, in lower case, e.g. "puppies".
        category: of COCO, e.g. "dog".
    """

    words: str
    category: str


@lru_cache(maxsize=1 << 15)  # texts: the captions and references of a test set, which several metrics of people share
def mentions(caption: str) -> tuple[Mention, ...]:
    """The objects that a caption mentions, in the order of its words; one that is mentioned twice comes twice.

    Case, hyphens and apostrophes make no difference; a compound does not reach across other punctuation.

    Examples:
        >>> mentions("Two puppies, a hot-dog, and a baby elephant")
        (Mention(words='puppies', category='dog'), Mention(words='hot dog', category='hot dog'),
         Mention(words='baby elephant', category='elephant'))
        >>> mentions("train tracks")
        ()
    """
    named = [Mention(words, category) for words, category in _phrases().mentions(caption) if category is not None]
    if any(mention.category == "toilet" for mention in named):  # "the seat of a toilet"
        named = [mention for mention in named if mention.words not in ("seat", "seats")]
    return tuple(named)


@cache
def _phrases() -> Phrases[str | None]:
    """All words and phrases, with the category that they mention, if any."""
    named: dict[str, str | None] = {
        form: category for category, words in WORDS.items() for word in words for form in forms(word)
    }
    animals, vehicles = ([word for category in group for word in WORDS[category]] for group in (_ANIMALS, _VEHICLES))
    qualified = [f"{kin} {animal}" for kin in _KIN for animal in animals]
    qualified += [f"{who} {vehicle}" for who in ("passenger", "commuter") for vehicle in vehicles]
    for phrase in qualified:
        category = named[phrase.split(" ", 1)[1]]
        named |= dict.fromkeys(forms(phrase), category)
    nothing = [*_NO_OBJECTS, *(f"{kin} animal" for kin in _KIN)]
    return Phrases(named | dict.fromkeys(chain.from_iterable(map(forms, nothing))))
