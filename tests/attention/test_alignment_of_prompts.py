"""What `auto` makes of prompts that people write, on CLIP's own tokenizer, by a table by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

from diffusion_path.attention.align import (
    Prompt,
    PromptPair,
    Words,
    automatic,
    changes,
    refine,
    replace,
)
from diffusion_path.attention.words import read

# source | target | words that take the place of others | words that are new | words that are gone
TABLE = """
# One word for another.
a horse on a meadow | a zebra on a meadow | horse>zebra | |
a photo of a cat sitting on a bench | a photo of a dog sitting on a bench | cat>dog | |
a red car | a blue car | red>blue | |
a house on a mountain in spring | a house on a mountain in winter | spring>winter | |
A Horse in the Snow | a zebra in the snow | horse>zebra | |
a cat on the sofa | a chihuahua on the sofa | cat>chihuahua | |
a smiling woman | a crying woman | smiling>crying | |
the horse eats | the axolotl eats | horse>axolotl | |
# Words added.
a horse | a brown horse | | brown |
a cake on a table | a chocolate cake with candles on a table | | chocolate with candles |
a man in a park | a man with a hat in a park | | with a hat |
a castle at a river | a children drawing of a castle at a river | | children drawing of a |
portrait of a woman | a portrait of a woman | | a |
a cat on a sofa | a black and white cat on a sofa | | black and white |
a dog | a dog in the style of van gogh | | in the style of van gogh |
# Words taken out.
a big brown horse | a horse | | | big brown
a street with cars and people | a street | | | with cars and people
a table with a bowl of fruit, still life | a table with a bowl of fruit | | | , still life
a photo of a cat | a cat | | | photo of a
# As many words in both, and not the same ones in each place.
a horse on a green meadow | a brown horse on a meadow | | brown | green
a red ball and a cube | a ball and a red cube | | red | red
a big cat on a mat | a cat on a big mat | | big | big
a white horse in a field | a horse in a snowy field | | snowy | white
the lamp on a desk | a desk with the lamp | | a desk with | on a desk
an old man with a dog | a man with an old dog | an>a ; a>an | old | old
a tall tree near a house | a tree near a tall house | | tall | tall
# A word for another, and one more or less.
a horse on a meadow | a brown zebra on a meadow | horse>brown zebra | |
a brown horse on a meadow | a zebra on a meadow | brown horse>zebra | |
a man in a park | a woman with a hat in a park | man>woman | with a hat |
a woman with a hat in a park | a man in a park | woman>man | | with a hat
a cat | a dog and a bird on a sofa | cat>dog | and a bird on a sofa |
a dog and a bird on a sofa | a cat | dog>cat | | and a bird on a sofa
a photo of a cat | an oil painting of a cat | a>an ; photo>oil painting | |
a cat in a hat | dog | cat>dog | | a in a hat
children playing | two boys playing with a red ball | children>two boys | with a red ball |
a big cat | a small fluffy dog | big cat>small fluffy dog | |
a boy riding a bike | a boy walking | riding>walking | | a bike
a cat | cats | cat>cats | | a
a man holding an umbrella in the rain | a woman in the rain | man>woman | | holding an umbrella
the dog sleeps on the rug | a small dog sleeps on the rug | the>a | small |
# Two edits at once.
a red car and a green house | a blue car and a white house | red>blue ; green>white | |
a cat and a dog | a dog and a cat | cat>dog ; dog>cat | |
a horse and a dog on a beach | a zebra and a black dog on a beach | horse>zebra | black |
a cat with a red hat, sitting | a tiger with a hat, standing | cat>tiger ; sitting>standing | | red
a man in a black suit | a woman in a white suit with a tie | man>woman ; black>white | with a tie |
a sunny beach with palm trees | a beach with pine trees at night | palm>pine | at night | sunny
# Clauses in another order: what can keep its order is kept.
in a park sits an old man | an old man sits in a park | | sits in a park | in a park sits
at night, a city street with cars | a city street with cars at night | | at night | at night ,
oil painting, a cat on a chair | a cat on a chair, oil painting | | , oil painting | oil painting ,
with a red hat, a man walks | a man walks with a red hat | | a man walks | , a man walks
# Words that come again.
a cat and a cat | a cat and a dog | cat>dog | |
a cat and a cat | a dog and a cat | cat>dog | |
a cat and a cat | a cat | | | and a cat
a cat | a cat and a cat | | and a cat |
a very very old house | a very old house | | | very
red, red, red roses | red, red roses | | | , red
# Punctuation.
a cat, a dog, a bird | a cat, a fox, a bird | dog>fox | |
a cat. a dog. | a cat, a dog | .>, | | .
a cat! | a cat | | | !
a cat (sleeping) | a cat sleeping | | |
"a cat" | a dog | cat>dog | | " "
# Weights change nothing.
a (red:1.3) horse | a red horse | | |
a red horse, (sharp:1.2) | a (blue:1.3) horse, sharp | red>blue | |
a ((horse)) on grass | a (zebra:0.8) on (green:1.1) grass | horse>zebra | green |
# Hyphens, apostrophes and numbers.
a blue-eyed dog | a green-eyed dog | blue>green | |
a blue-eyed dog | a dog | | | blue - eyed
a cat | a blue-eyed dog | cat>blue - eyed dog | |
the horse's tail | the zebra's tail | horse>zebra | |
the horse's tail | the horse tail | | | 's
2 cats on a roof | 3 cats on a roof | 2>3 | |
a photo from 1985 | a photo from 2024 | 1>2 ; 9>0 ; 8>2 ; 5>4 | |
2 cats | 12 cats | | 1 |
a house, 4k | a house, 8k | 4>8 | |
# Plurals.
a horse in a field | two horses in a field | a>two ; horse>horses | |
three birds | a bird | three>a ; birds>bird | |
a cat and a dog | cats and dogs | cat>cats ; dog>dogs | | a a
# Styles.
a castle on a hill | a castle on a hill, oil painting | | , oil painting |
a castle on a hill, photograph | a castle on a hill, oil painting | photograph>oil painting | |
a castle, watercolor, sharp | a castle, pencil sketch, sharp | watercolor>pencil sketch | |
a castle on a hill, oil painting | a ruin on a hill | castle>ruin | | , oil painting
# Without any words.
| a horse | | a horse |
a horse | | | | a horse
| | | |
, | a | ,>a | |
# German.
ein Pferd auf einer grünen Wiese | ein braunes Pferd auf einer Wiese | | braunes | grünen
ein Pferd auf einer Wiese | ein Zebra auf einer Wiese | pferd>zebra | |
ein Pferd auf einer Wiese | ein gestreiftes Zebra auf einer Wiese | pferd>gestreiftes zebra | |
eine Katze auf dem Sofa | ein Hund auf dem Sofa | eine>ein ; katze>hund | |
ein Mann im Park | eine Frau mit Hut im Park | ein>eine ; mann>frau | mit hut |
ein Haus, Ölgemälde | ein Haus bei Nacht, Aquarell | ölgemälde>aquarell | bei nacht |
ein Schaukelpferd und ein Pferd | ein Pferd | | | schaukelpferd und ein
# French.
un cheval dans un pré vert | un cheval brun dans un pré | | brun | vert
un cheval dans un pré | un zèbre dans un pré | cheval>zèbre | |
un cheval dans un pré | un zèbre rayé dans un pré | cheval>zèbre rayé | |
l'homme à la fenêtre | la femme à la fenêtre | l>la ; homme>femme | | '
une maison rouge près de la mer | une maison près de la mer la nuit | | la nuit | rouge
un chat et un chien | un chat et deux oiseaux | un>deux ; chien>oiseaux | |
# Spanish.
un caballo en un prado verde | un caballo marrón en un prado | | marrón | verde
una niña con un sombrero rojo | un niño con un sombrero | una>un ; niña>niño | | rojo
un perro en la playa | un gato negro en la playa | perro>gato negro | |
una casa blanca junto al mar | una casa junto al mar, acuarela | | , acuarela | blanca
# Portuguese and Japanese in Latin letters.
um cavalo no campo | um cavalo marrom no campo à noite | | marrom à noite |
um gato preto no telhado | um cachorro no telhado | gato preto>cachorro | |
sakura no ki to neko | sakura no ki to inu | neko>inu | |
akai kuruma to inu | kuruma to shiroi inu | | shiroi | akai
# More of all these, written when the rules were settled.
a wooden chair in a room | a metal chair in a bright room | wooden>metal | bright |
a lighthouse at sunset with waves | a lighthouse with waves at dawn | | at dawn | at sunset
two men walk a dog | a man walks two dogs | two>a ; men>man ; walk>walks ; a>two ; dog>dogs | |
a white cat lying on a red pillow | a red cat lying on a white pillow | white>red ; red>white | |
a bowl of apples on a table | a bowl with plums and apples on a table | of>with | plums and |
a man with a beard and glasses | a man with glasses | | | a beard and
a man with glasses | a bearded man with a pipe | glasses>pipe | bearded a |
a squirrel eating a burger | a lion eating a burger, pixel art | squirrel>lion | , pixel art |
a squirrel eating a burger | a squirrel eating a lasagna | burger>lasagna | |
my fluffy bunny doll | my fluffy unicorn doll | bunny>unicorn | |
a small house with a garden | a house with a small garden | | small | small
a lake, mountains and a forest | a forest, mountains and a lake | lake>forest ; forest>lake | |
a dog running on grass | a dog on grass | | | running
a dog on grass | a cat running on grass | dog>cat running | |
a girl with long blonde hair | a girl with short hair | long blonde>short | |
photo of the eiffel tower | night photo of the eiffel tower in the rain | | night in the rain |
a cup of coffee | a cup of tea with milk | coffee>tea | with milk |
a glass vase with flowers | a clay pot with flowers | glass>clay ; vase>pot | |
a red bus on a street in london | a blue bus on a street in paris | red>blue ; london>paris | |
a woman | a young woman wearing a blue dress | | young wearing a blue dress |
a close-up of a face | a face | | | close - up of a
the old bridge over the river | the stone bridge over the frozen river | old>stone | frozen |
eine rote Tasse im Regal | eine blaue Tasse mit Kaffee im Regal | rote>blaue | mit kaffee |
ein Foto von einem Hund | ein Gemälde von einem Hund | foto>gemälde | |
zwei Kinder spielen im Garten | zwei Kinder spielen Ball im Garten | | ball |
der alte Mann liest ein Buch | die alte Frau liest ein Buch | der>die ; mann>frau | |
ein Boot auf dem See | ein Segelboot auf dem ruhigen See | boot>segelboot | ruhigen |
une tasse de café sur une table | une tasse de thé sur une table en bois | café>thé | en bois |
un jardin avec des roses rouges | un jardin avec des roses bleues | rouges>bleues | |
une petite maison blanche | une grande maison | petite>grande | | blanche
le chien noir dort | le chien dort | | | noir
un vaso de vino tinto | un vaso de agua | vino tinto>agua | |
una calle con lluvia | una calle con nieve y luces | lluvia>nieve | y luces |
un hombre joven con barba | un hombre viejo | joven>viejo | | con barba
um barco azul no mar | um barco vermelho no mar ao amanhecer | azul>vermelho | ao amanhecer |
una gatta bianca sul divano | una gatta nera sul divano rosso | bianca>nera | rosso |
aoi umi to shiroi kumo | aoi umi to kuroi kumo | shiroi>kuroi | |
a [red] car, 1girl | a [blue] car, 2girls | red>blue ; 1>2 ; girl>girls | |
masterpiece, 1girl, red hair | masterpiece, 1girl, blue hair, smile | red>blue | , smile |
a cat :3 | a dog :3 | cat>dog | |
"""
Row = tuple[str, str, list[tuple[str, str]], list[str], list[str]]


def rows() -> list[Row]:
    """The table, line by line."""
    found = []
    for line in TABLE.strip().splitlines():
        if line.startswith("#"):
            continue
        source, target, changed, added, removed = (part.strip() for part in line.split("|"))
        pairs = [tuple(one.strip().split(">")) for one in changed.split(";") if one.strip()]
        found.append((source, target, pairs, added.split(), removed.split()))
    return found


ROWS = rows()
each_row = pytest.mark.parametrize("row", ROWS, ids=[f"{one[0]} -> {one[1]}" for one in ROWS])


@pytest.fixture(scope="module")
def pair(comfy: Path) -> Callable[[str, str], PromptPair]:
    """Makes a pair of prompts that SD 1's tokenizer has read."""
    from comfy.sd1_clip import SD1Tokenizer

    tokenizer = SD1Tokenizer()

    def prompt(text: str) -> Prompt:
        chunks = tokenizer.tokenize_with_weights(text, return_word_ids=True)
        reading = read(chunks, {"l": tokenizer.clip_l})
        embedding = torch.zeros(1, len(reading.tokens), 4)
        return Prompt(text=text, tokens=reading.tokens, words=reading.words, embedding=embedding)

    return lambda source, target: PromptPair(source=prompt(source), target=prompt(target))


def spelt(words: Words) -> str:
    return " ".join(word.text for word in words)


def differences(found: Iterable[tuple[Words, Words]]) -> tuple[list[tuple[str, str]], str, str]:
    """Words in the place of others, new words and words that are gone."""
    texts = [(spelt(old), spelt(new)) for old, new in found]
    changed = [(old, new) for old, new in texts if old and new and old != new]
    added = " ".join(new for old, new in texts if not old)
    removed = " ".join(old for old, new in texts if not new)
    return changed, added, removed


def test_the_table_has_pairs_enough_in_several_languages():
    assert len(ROWS) == len({row[:2] for row in ROWS}) >= 140


@each_row
def test_auto_finds_what_a_person_would(pair: Callable, row: Row):
    source, target, *expected = row
    changed, added, removed = expected
    found = differences(changes(pair(source, target)))
    assert found == (changed, " ".join(added), " ".join(removed))


@each_row
def test_every_word_is_told_once_and_in_order(pair: Callable, row: Row):
    prompts = pair(*row[:2])
    found = changes(prompts)
    assert sum((old for old, _ in found), ()) == prompts.source.words
    assert sum((new for _, new in found), ()) == prompts.target.words


@each_row
def test_with_the_prompts_exchanged_auto_finds_the_same(pair: Callable, row: Row):
    source, target = row[:2]
    there, back = changes(pair(source, target)), changes(pair(target, source))
    both = [(old, new) for old, new in there if old and new]
    assert both == [(new, old) for old, new in back if old and new]


@each_row
def test_only_exchanged_words_are_replace_and_only_added_or_removed_ones_refine(
    pair: Callable, row: Row
):
    source, target, changed, added, removed = row
    prompts = pair(source, target)
    mapper = automatic(prompts).mapper
    whole = all(len(old) == len(new) for old, new in changes(prompts))
    if whole and not added and not removed:
        assert torch.equal(mapper, replace(prompts).mapper)
    # "Schaukelpferd" ends in the tokens of "Pferd", and refine takes them there.
    if not changed and not (added and removed) and "Schaukelpferd" not in source:
        assert torch.equal(mapper, refine(prompts).mapper)


def test_a_word_is_not_found_inside_of_another(pair: Callable):
    prompts = pair("ein Pferd", "ein Schaukelpferd und ein Pferd")
    rocking = list(prompts.target.columns("Schaukelpferd"))
    assert automatic(prompts).new[rocking].all()
    assert not refine(prompts).new[rocking].all()


def test_equal_word_counts_no_longer_go_by_place(pair: Callable):
    prompts = pair("a horse on a green meadow", "a brown horse on a meadow")
    mapper = automatic(prompts).mapper
    for word in ("horse", "on", "meadow"):
        (old,), (new,) = prompts.source.columns(word), prompts.target.columns(word)
        assert mapper[old, new] == 1
    assert not torch.equal(mapper, replace(prompts).mapper)
