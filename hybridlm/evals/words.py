"""Word lists: adjectives and nouns for the keys of needles, and the words of the bundled text."""

import collections
import functools
import re

import numpy as np

from hybridlm.evals import haystack

ADJECTIVES = (
    "able agile airy amber ample ancient autumn bare basic bold brave brief bright brisk broad "
    "busy calm careful cheap civil clean clear clever close cloudy coastal cold common cool "
    "crisp curious daily damp dark dear deep dense distant double dry dusty eager early easy "
    "eastern elder empty equal even exact faint fair famous fancy fast few final fine firm flat "
    "fond formal free fresh full gentle giant glad golden grand grave gray great green handy "
    "happy hard hardy heavy hidden high hollow honest humble icy idle inner jolly just keen kind "
    "large late lazy lean level light lively local lonely long loose loud low loyal lucky major "
    "mellow merry mild minor misty modern modest moist narrow neat new noble noisy northern odd "
    "old open outer pale patient plain polite prime proud pure quick quiet rapid rare ready rich "
    "rigid ripe rocky rough round royal rural rusty safe salty sandy secret serious shady shallow "
    "sharp shiny short shy silent silver simple sleepy slim slow small smart smooth snowy sober "
    "soft solar solid southern spare steady steep still stout strict strong subtle sudden sunny "
    "sweet swift tall tame tender thick thin tidy tiny tough tranquil true upper urban useful "
    "vast vivid warm wary weary western white whole wide wild windy wise witty wooden young"
).split()
NOUNS = (
    "acorn anchor ankle apple apron arch arrow attic badge bakery balcony banner barn barrel basin "
    "basket beacon beam bear bell bench berry blanket boat bottle bowl branch brick bridge broom "
    "brush bucket button cabin cable camel candle canoe canyon carpet carriage castle cave cellar "
    "chain chair chalk chapel cherry chest chimney circle clay cliff clock cloud coach coast comb "
    "compass copper corner cotton cradle crane creek crown curtain daisy desert desk diary dome "
    "door dragon drawer drum eagle easel elbow engine falcon farm feather fence fern ferry field "
    "flag flame flute forest fork fountain fox garden gate glacier glove goat grape harbor harp "
    "hammer hat hawk hazel hedge helmet hill hook horse island ivory jacket jar jewel kettle key "
    "kite kitten ladder lake lamp lantern leaf lemon lever lily lion lizard lock loom maple "
    "marble market meadow mill mirror mitten mountain nail needle nest oak oar ocean olive onion "
    "orchard otter oven owl paddle palace panel parrot path pebble pencil pepper piano pigeon "
    "pillow pine planet plate plow pocket pond porch puzzle quarry quilt rabbit raft rail raven "
    "ribbon river robin roof rope saddle sail salmon scarf shell shelf shield shovel sparrow "
    "spoon squirrel stable statue stone stool stream swan table teapot temple thimble thunder "
    "ticket tiger torch tower trail train trumpet tulip tunnel turtle umbrella valley vase velvet "
    "village violin wagon walnut wheel whistle willow window wolf"
).split()


def word_keys(rng: np.random.Generator, count: int) -> list[str]:
    """`count` different "adjective-noun" keys."""
    chosen = rng.choice(len(ADJECTIVES) * len(NOUNS), size=count, replace=False)
    return [f"{ADJECTIVES[i // len(NOUNS)]}-{NOUNS[i % len(NOUNS)]}" for i in chosen.tolist()]


@functools.cache
def text_words() -> tuple[str, ...]:
    """Lower-case words of 4 to 12 letters, at least 3 times in the bundled text, sorted."""
    counts: collections.Counter[str] = collections.Counter()
    for address in haystack.addresses():
        counts.update(re.findall(r"\b[a-z]{4,12}\b", address.text))
    return tuple(sorted(word for word, count in counts.items() if count >= 3))
