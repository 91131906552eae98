#!/usr/bin/env python3
# Copyright the ferroflash authors. Apache-2.0, like the rest of the repository.
"""Writes short children's stories from a grammar, as training text for the small models in this repository.

Every word of the output comes from this file, so the text and models trained on it may be shipped under the licence of the
repository. A story keeps its state: who the people are, where they live, what was lost and where it turns up, what broke and
who mended it. A model that writes sensible stories has therefore learnt to look back, which is what attention is for.

    python3 stories.py --stories 8000 --seed 1 > stories.txt        # about 5 MB, stories separated by a blank line
"""

import argparse
import random
import sys

BOYS = "Ben Tom Max Leo Sam Finn Oscar Jack Theo Milo Hugo Noah Felix Otto Arlo Ned Toby Rufus Jasper Gus".split()
GIRLS = "Lily Mia Anna Rosie Ella Ruby Nora Ivy Clara Daisy Hazel Molly Poppy Ada Luna Willa Tess Flora Maya Pippa".split()
ANIMALS = ["fox", "rabbit", "bear", "mouse", "hedgehog", "squirrel", "duck", "badger", "frog", "otter", "mole", "owl",
           "kitten", "puppy", "lamb", "beaver", "turtle", "sparrow", "goat", "pony"]
TRAITS = ["little", "kind", "shy", "curious", "brave", "clever", "cheerful", "quiet", "gentle", "playful", "busy", "patient",
          "friendly", "sleepy", "careful", "funny"]
COLOURS = ["red", "blue", "green", "yellow", "purple", "orange", "white", "silver", "golden", "pink"]

HOMES = [
    ("in a small village by the sea", "the village", "the beach"),
    ("in a cosy house at the edge of the forest", "the house", "the forest"),
    ("in a green valley between two hills", "the valley", "the hill"),
    ("on a farm with a big red barn", "the farm", "the barn"),
    ("in a tall house on a busy street", "the house", "the park"),
    ("in a cottage beside a slow river", "the cottage", "the river"),
    ("near a quiet lake in the mountains", "the lake", "the lake"),
    ("in a little town with a clock tower", "the town", "the market"),
    ("under an old oak tree in the meadow", "the oak tree", "the meadow"),
    ("in a wooden hut on a windy hill", "the hut", "the hill"),
]

HOBBIES = [
    ("sing songs", "singing songs"), ("paint pictures", "painting pictures"), ("climb trees", "climbing trees"),
    ("collect smooth stones", "collecting smooth stones"), ("read books about ships", "reading books about ships"),
    ("watch the clouds", "watching the clouds"), ("dance in the rain", "dancing in the rain"),
    ("count the stars", "counting the stars"), ("play the drum", "playing the drum"), ("fly kites", "flying kites"),
    ("bake little cakes", "baking little cakes"), ("swim in the pond", "swimming in the pond"),
    ("tell jokes", "telling jokes"), ("build towers of blocks", "building towers of blocks"),
    ("look for beetles", "looking for beetles"), ("plant flowers", "planting flowers"),
]

DAYS = [
    ("One sunny morning", "The sun was shining and the birds were singing."),
    ("One cold morning", "There was frost on the grass and the air was fresh."),
    ("One windy afternoon", "The wind was shaking the leaves from the trees."),
    ("One warm afternoon", "Bees were humming over the flowers."),
    ("One rainy day", "Rain was tapping on the window."),
    ("One spring day", "The first flowers were opening in the grass."),
    ("One autumn day", "The leaves were turning red and gold."),
    ("One summer evening", "The sky was pink and the air was still."),
    ("One foggy morning", "A soft grey mist lay over everything."),
    ("Early one day", "The world was quiet and the dew was still on the grass."),
]

LOST = [
    ("hat", "warm"), ("ball", "bouncy"), ("key", "tiny"), ("scarf", "woolly"), ("ring", "shiny"), ("book", "old"),
    ("bell", "little"), ("boat", "wooden"), ("kite", "paper"), ("whistle", "tin"), ("button", "round"), ("basket", "small"),
    ("spoon", "long"), ("lantern", "glass"), ("umbrella", "big"),
]
SPOTS = [
    ("under the bed", "some dust and an old sock"), ("behind the door", "a broom and a spider"),
    ("in the kitchen", "a pot of soup"), ("beside the gate", "a snail on a leaf"), ("in the garden", "three fat carrots"),
    ("under the bench", "a few dry leaves"), ("by the well", "a bucket of water"), ("in the shed", "a box of nails"),
    ("near the bridge", "two ducks on the water"), ("behind the hay", "a hen with her eggs"),
    ("on the stairs", "a sleeping cat"), ("inside the big boot", "nothing but a hole"),
]
FOUND = [
    ("on a high branch", "The wind must have carried it up there", "climbed up and brought it down"),
    ("in the tall grass", "It must have fallen there yesterday", "bent down and picked it up"),
    ("in a magpie's nest", "The magpie loves pretty things", "asked the magpie politely, and the magpie gave it back"),
    ("at the bottom of the pond", "It must have rolled into the water", "reached in with a long stick and pulled it out"),
    ("under a pile of leaves", "The leaves must have covered it in the night", "brushed the leaves away"),
    ("in the pocket of an old coat", "You wore that coat last week", "took it out and held it up"),
]

HURT = [
    ("a small bird", "its wing was caught in a thorn bush", "freed the wing, one thorn at a time", "flew up and sang a bright song"),
    ("a baby rabbit", "its foot was stuck between two roots", "pulled the roots apart", "hopped around in a happy circle"),
    ("a young duck", "it could not find its mother", "followed the sound of quacking to the reeds", "ran to its mother and hid under her wing"),
    ("a tiny mouse", "it had fallen into a deep hole", "lowered a long branch into the hole", "climbed out and shook off the dirt"),
    ("a little hedgehog", "it was tangled in a net", "cut the net with great care", "rolled into a ball and then peeped out"),
    ("an old turtle", "it was lying on its back and could not turn over", "rolled it gently onto its feet", "nodded slowly and said thank you"),
    ("a wet kitten", "it was sitting on a rock in the middle of the stream", "laid a plank across the stream", "walked over the plank and purred"),
    ("a lost lamb", "it was crying beside the road", "led it back along the road to the farm", "jumped over the gate to the other sheep"),
]

FOODS = [
    ("an apple pie", "the pie", ["apples", "flour", "butter"]), ("a honey cake", "the cake", ["honey", "eggs", "flour"]),
    ("a pot of vegetable soup", "the soup", ["carrots", "beans", "onions"]),
    ("a loaf of bread", "the bread", ["flour", "salt", "water"]),
    ("a plum tart", "the tart", ["plums", "sugar", "butter"]), ("a batch of ginger biscuits", "the biscuits", ["ginger", "sugar", "flour"]),
    ("a bowl of berry jam", "the jam", ["berries", "sugar", "lemon"]), ("a stack of pancakes", "the pancakes", ["milk", "eggs", "flour"]),
]
SEEDS = [
    ("a sunflower seed", "a sunflower", "as tall as the roof", "kept its seeds for the hungry birds"),
    ("a pumpkin seed", "a pumpkin", "as round as a wheel", "made soup for everyone in the street"),
    ("a bean", "a bean plant", "higher than the fence", "shared the beans with the neighbours"),
    ("an acorn", "a small oak tree", "up to the window", "hung a lantern on its first branch"),
    ("a strawberry plant", "a whole bed of strawberries", "wide and sweet and red", "filled a bowl for every friend"),
    ("a rose cutting", "a rose bush", "full of pink flowers", "gave a rose to everyone who passed"),
]
FEARS = [
    ("the dark", "went into the dark cellar", "a lantern", "It was only an old chair with a coat on it", "the dark was just the day with its eyes closed"),
    ("thunder", "heard the thunder roll over the roof", "a warm blanket", "It was only the clouds bumping their heads", "thunder was only noise"),
    ("deep water", "stood at the edge of the lake", "a strong rope", "The water was cool and held them up", "water is a friend to those who learn to swim"),
    ("high places", "looked up at the tall ladder", "a steady hand", "From the top they could see the whole valley", "a high place is only many small steps"),
    ("loud dogs", "heard the big dog bark behind the fence", "a piece of bread", "The dog wagged its tail and only wanted to play", "a loud voice can hide a soft heart"),
    ("speaking to strangers", "had to ask the baker for a loaf", "a big smile", "The baker laughed kindly and added a free bun", "most strangers are friends who have not met you yet"),
]
BROKEN = [
    ("vase", "while running through the room", "It fell and broke into five pieces", "glued the pieces together"),
    ("window", "while playing with the ball", "The glass cracked from top to bottom", "put in a new pane of glass"),
    ("clock", "while dusting the shelf", "It dropped and stopped ticking", "opened it and set the tiny wheels right"),
    ("chair", "while jumping like a frog", "One leg snapped with a loud crack", "fixed the leg with wood and glue"),
    ("teapot", "while playing shop", "The handle came off", "tied and glued the handle back on"),
    ("fence", "while racing down the hill", "Two boards fell flat on the ground", "nailed the boards back in place"),
]
OWNERS = [("Grandma Rose", "she", "her"), ("Grandpa Joe", "he", "his"), ("Aunt May", "she", "her"), ("Uncle Fred", "he", "his"),
          ("Mother", "she", "her"), ("Father", "he", "his"), ("old Mrs Brook", "she", "her"), ("old Mr Stone", "he", "his")]
BUILDS = [
    ("a raft", "the raft", ["logs", "rope", "an old sheet"], "sank as soon as it touched the water", "tied the logs closer together", "floated proudly down the stream"),
    ("a kite", "the kite", ["paper", "string", "two thin sticks"], "spun around and fell on its nose", "gave it a longer tail", "rose higher and higher until it was a dot in the sky"),
    ("a tree house", "the tree house", ["boards", "nails", "a rope ladder"], "shook in the wind and lost its roof", "added four strong posts", "stood firm and dry among the leaves"),
    ("a snow fort", "the snow fort", ["snow", "two shovels", "a red flag"], "slid down on one side", "made the walls thicker", "stood as white and strong as a castle"),
    ("a little cart", "the cart", ["a box", "four wheels", "a piece of rope"], "lost a wheel on the first stone", "fixed the wheels with better pins", "rolled down the lane without a bump"),
    ("a bird house", "the bird house", ["wood", "nails", "green paint"], "fell from the tree in the night", "hung it with a stronger wire", "had two blue birds living in it before the week was over"),
]
PEAKS = [
    ("the top of the hill", "the sunrise", "the sky turned from grey to gold"),
    ("the old lighthouse", "the ships", "three white ships sailed past in a row"),
    ("the waterfall", "the rainbow", "a bright rainbow hung in the spray"),
    ("the hidden lake", "the swans", "seven swans glided over the still water"),
    ("the giant tree", "the fireflies", "a thousand tiny lights danced between the branches"),
    ("the stone tower", "the stars", "the stars came out one by one"),
]
BLOCKS = [
    ("a wide stream", "There was no bridge", "laid flat stones in the water and stepped from one to the next"),
    ("a fallen tree", "It lay right across the path", "helped each other climb over the trunk"),
    ("a locked gate", "It was too high to jump", "found a gap in the hedge and crawled through"),
    ("thick fog", "They could not see the path", "held hands and followed the sound of the bells"),
    ("a steep rock", "It was smooth and hard to climb", "made a loop in the rope and pulled each other up"),
    ("a muddy field", "Their boots sank deep into the mud", "put down branches and walked on them"),
]
TOYS = ["swing", "drum", "sled", "red wagon", "puzzle", "box of paints", "toy train", "skipping rope"]
NOISES = [
    ("a soft tapping", "a branch was knocking on the window in the wind"),
    ("a strange squeak", "a mouse was pulling a nut across the floor"),
    ("a slow drip", "the tap in the kitchen had not been closed"),
    ("a deep humming", "Grandpa was snoring in the next room"),
    ("a quick scratching", "the puppy was trying to get into the room"),
    ("a low hoot", "a young owl was sitting on the roof and calling its mother"),
]
CONTESTS = [
    ("the big race", "run", "fell over a root"), ("the swimming race", "swim", "got a cramp in the leg"),
    ("the boat race", "row", "lost an oar in the water"), ("the sled race", "steer the sled", "slid into a bank of snow"),
]
GIFTS = [
    ("a knitted scarf", "knitted it", "wool"), ("a painted cup", "painted it", "clay"), ("a wooden horse", "carved it", "wood"),
    ("a string of shells", "threaded it", "shells"), ("a book of pressed flowers", "pressed each flower", "flowers"),
    ("a little song", "wrote every line of it", "paper"),
]


class Person:
    """Someone in a story: a name, what kind of creature, and the pronouns that go with them."""

    def __init__(self, r, not_name=None, not_kind=None):
        girl = r.random() < 0.5
        while True:
            self.name = r.choice(GIRLS if girl else BOYS)
            if self.name != not_name:
                break
        while True:
            self.kind = r.choice(ANIMALS) if r.random() < 0.7 else ("girl" if girl else "boy")
            if self.kind != not_kind:
                break
        self.trait = r.choice(TRAITS)
        self.he, self.him, self.his = ("she", "her", "her") if girl else ("he", "him", "his")
        self.He, self.His = self.he.capitalize(), self.his.capitalize()

    @property
    def a_kind(self):
        return f"{article(self.trait)} {self.trait} {self.kind}"


def article(word):
    """The indefinite article before `word`."""
    return "an" if word[0] in "aeiou" else "a"


def list_of(things):
    """`a, b and c`."""
    return ", ".join(things[:-1]) + " and " + things[-1]


class Story:
    """One story with its cast. `text` is the story, `theme` what a reader would say it is about."""

    def __init__(self, r):
        self.r = r
        self.h = Person(r)
        self.f = Person(r, not_name=self.h.name, not_kind=self.h.kind)
        self.home, self.house, self.outside = r.choice(HOMES)
        self.day, self.weather = r.choice(DAYS)
        self.theme = ""
        plot = r.choice(PLOTS)
        parts = [self.opening()] + plot(self) + [self.closing()]
        self.text = "\n".join(" ".join(s for s in p if s) for p in parts if p)

    def one(self, *options):
        return self.r.choice(options)

    def maybe(self, sentence, chance=0.5):
        return sentence if self.r.random() < chance else ""

    def say(self, who, words, verb="said"):
        return self.one(f'"{words}," {verb} {who}.' if words[-1] not in "!?." else f'"{words}" {verb} {who}.',
                        f'{who[0].upper() + who[1:]} {verb}, "{words}{"" if words[-1] in "!?." else "."}"')

    def opening(self):
        h, f = self.h, self.f
        do, doing = self.r.choice(HOBBIES)
        first = self.one(
            f"Once upon a time there was {h.a_kind} named {h.name}, who lived {self.home}.",
            f"Once upon a time, {h.a_kind} named {h.name} lived {self.home}.",
            f"{h.name} was {h.a_kind} who lived {self.home}.",
            f"There once was {h.a_kind} called {h.name}. {h.He} lived {self.home}.",
            f"{self.home[0].upper() + self.home[1:]} lived {h.a_kind} named {h.name}.",
            f"Long ago, {h.a_kind} called {h.name} lived {self.home}.",
        )
        second = self.one(
            f"{h.He} loved to {do}.", f"What {h.he} liked best was {doing}.", f"Every day {h.he} would {do}.",
            f"{h.name} was happiest when {h.he} was {doing}.", "",
        )
        third = self.one(
            f"{h.His} best friend was {f.name}, {f.a_kind}.",
            f"{h.He} had a good friend called {f.name}, who was {f.a_kind}.",
            f"Next door lived {f.name}, {f.a_kind}, and the two were always together.",
            f"{h.name} and {f.name} the {f.kind} were the best of friends.",
        )
        return [first, second, third]

    def begin(self):
        return self.maybe(self.weather, 0.6)

    def closing(self):
        h, f = self.h, self.f
        return [self.one(
            f"That night {h.name} fell asleep with a smile.",
            f"Then {h.name} and {f.name} walked home together.",
            f"{h.name} and {f.name} laughed all the way home.",
            f"And from that day on, {h.name} and {f.name} were even better friends.",
            f"When the moon came up, {h.name} was already fast asleep.",
            f"It was the best day {h.name} could remember.",
            "And they all lived happily ever after.",
            f"\"What a day,\" said {f.name}, and {h.name} nodded.",
        ), self.maybe("The end.", 0.35)]

    # The plots. Each returns the middle paragraphs.

    def lost_thing(self):
        h, f = self.h, self.f
        thing, adj = self.r.choice(LOST)
        colour = self.r.choice(COLOURS)
        a, b = self.r.sample(SPOTS, 2)
        where, why, how = self.r.choice(FOUND)
        self.theme = f"a lost {thing}"
        return [
            [f"{self.day}, {h.name} could not find {h.his} {colour} {thing}.", self.begin(),
             self.one(f"It was {article(adj)} {adj} {thing}, and {h.he} took it everywhere.", f"The {thing} had been a present from {h.his} grandmother.",
                      f"{h.He} had never lost it before.")],
            [self.one(f"{h.name} looked {a[0]}, but there was only {a[1]}." if not a[1].startswith("nothing") else f"{h.name} looked {a[0]}, but there was {a[1]}.",
                      f"First {h.he} looked {a[0]} and found {a[1]}."),
             self.one(f"Then {h.he} looked {b[0]} and found {b[1]}.", f"Next {h.he} searched {b[0]}, but all {h.he} saw was {b[1]}."),
             self.one(f"The {thing} was not there.", f"But there was no {thing}.", f"There was no {colour} {thing} anywhere."),
             self.one(f"{h.name} sat down and began to cry.", f"{h.name} felt very sad.", f"A tear rolled down {h.his} face.")],
            [self.say(f.name, self.one(f"Do not cry. I will help you look", f"Two pairs of eyes are better than one", f"Let us think about where you had it last")),
             f"They searched around {self.house} and then went to {self.outside}." if self.house != self.outside else f"They searched all around {self.house}.",
             self.one(f"At last {f.name} saw something {colour} {where}.", f"Suddenly {f.name} pointed. Something {colour} was {where}!")],
            [self.say(f.name, self.one(f"There is your {thing}! {why}", f"Look, {h.name}! {why}")),
             f"{f.name} {how}." if not how.startswith("asked") else f"{f.name} {how}.",
             self.one(f"{h.name} hugged {h.his} friend and put the {colour} {thing} in a safe place.",
                      f"{h.name} was so glad that {h.he} danced around {f.name}.",
                      f"\"Thank you, {f.name}!\" said {h.name}, and held the {thing} tight.")],
        ]

    def rescue(self):
        h, f = self.h, self.f
        who, trouble, act, thanks = self.r.choice(HURT)
        the = "the " + who.split(" ", 1)[1]
        self.theme = f"helping {who}"
        return [
            [f"{self.day}, {h.name} and {f.name} went for a walk near {self.outside}.", self.begin(),
             self.one(f"Suddenly they heard a small cry.", f"Then {f.name} stopped and listened.", f"Behind a bush they saw something move.")],
            [f"It was {who}, and {trouble}.",
             self.say(h.name, self.one("Oh no! We must help", "Do not be afraid. We are here to help", "Hold still, little one")),
             self.one(f"{f.name} was not sure what to do, but {h.name} had an idea.", f"{h.name} thought for a moment.", f"They had to be quick and quiet.")],
            [f"Very slowly, {h.name} and {f.name} {act}.",
             self.one(f"It took a long time, but they did not give up.", f"Soon {the} was safe.", f"{f.name} spoke softly so that {the} would not be scared.")],
            [f"{the[0].upper() + the[1:]} {thanks}.",
             self.say(f.name, self.one("It feels good to help", "That was a kind thing to do", "I am glad that we came this way")),
             self.one(f"{h.name} felt warm inside.", f"{h.name} waved until {the} was out of sight.")],
        ]

    def cooking(self):
        h, f = self.h, self.f
        food, the, parts = self.r.choice(FOODS)
        missing = self.r.choice(parts)
        self.theme = f"making {food}"
        return [
            [f"{self.day}, {h.name} wanted to make {food}.", self.begin(),
             f"{h.He} needed {list_of(parts)}.",
             self.one(f"{h.He} washed {h.his} hands and took out the biggest bowl.", f"{h.He} put on {h.his} apron and opened the cupboard.")],
            [self.one(f"But there {'were' if missing.endswith('s') else 'was'} no {missing} left!", f"But where the {missing} should have been, there was only an empty jar."),
             self.say(h.name, self.one("What shall I do now?", f"I cannot make it without {missing}", "Oh dear, oh dear")),
             self.one(f"Just then {f.name} knocked on the door.", f"At that moment {f.name} came by.")],
            [self.say(f.name, f"I have {missing} at home. If we work together, we can share"),
             f"{f.name} ran home and came back with plenty of {missing}.",
             self.one(f"{h.name} stirred while {f.name} told funny stories.", f"They mixed and stirred until their arms were tired.",
                      f"{f.name} spilled a little, and they both laughed.")],
            [self.one(f"Soon a lovely smell filled {self.house if self.house.startswith('the h') or self.house == 'the cottage' else 'the kitchen'}.", f"Before long {the} {'were' if the.endswith('s') else 'was'} ready."),
             self.one(f"They cut everything into two equal parts and ate until they were full.", f"They called all the neighbours, and there was enough for everyone.",
                      f"They took some to an old lady who lived alone."),
             self.one(f"{the[0].upper() + the[1:]} tasted even better because they had made {'them' if the.endswith('s') else 'it'} together.", f"\"Sharing is the best part,\" said {h.name}.")],
        ]

    def garden(self):
        h, f = self.h, self.f
        seed, plant, size, use = self.r.choice(SEEDS)
        self.theme = f"growing {plant}"
        return [
            [f"{self.day}, {f.name} gave {h.name} {seed}.", self.begin(),
             self.say(f.name, self.one("Put it in the ground and be patient", "It looks small, but wait and see", "Give it water every day"))],
            [f"{h.name} dug a little hole near {self.house} and covered it with soft earth.",
             self.one(f"{h.He} watered it every morning.", f"Every day {h.he} gave it a cup of water."),
             self.one(f"On the first day nothing happened. On the second day nothing happened.", f"A week went by, and there was nothing to see.",
                      f"Nothing happened for a long time."),
             self.one(f"{h.name} wanted to dig it up again.", f"\"Perhaps it is asleep,\" said {h.name}.", f"{h.name} began to think that it would never grow.")],
            [self.say(f.name, self.one("Good things take time", "Wait a little longer", "Roots grow first, where nobody can see them")),
             self.one(f"So {h.name} waited.", f"{h.name} nodded and went on watering."),
             self.one(f"Then one morning there was a tiny green leaf!", f"And one day a small green tip came out of the earth!")],
            [f"The leaf grew and grew, and by the end of the summer there was {plant}, {size}.",
             f"{h.name} and {f.name} {use}.",
             self.one(f"{h.name} had learned to wait.", f"\"You were right,\" {h.name} told {f.name}. \"Good things take time.\"")],
        ]

    def fear(self):
        h, f = self.h, self.f
        what, moment, aid, truth, lesson = self.r.choice(FEARS)
        self.theme = f"being afraid of {what}"
        return [
            [f"There was one thing that {h.name} did not like. {h.He} was afraid of {what}.",
             self.one(f"{h.He} never told anyone about it.", f"Even thinking of it made {h.his} knees shake.")],
            [f"{self.day}, {h.name} {moment}.", self.one(f"{h.His} heart beat fast.", f"{h.He} could not move.", f"{h.He} wanted to run away."),
             self.say(f.name, self.one("What is the matter?", "Are you all right?", "You look pale")),
             f"{h.name} took a deep breath and told the truth: \"I am afraid of {what}.\""],
            [self.one(f"{f.name} did not laugh.", f"{f.name} sat down beside {h.him}."),
             self.say(f.name, self.one("Everyone is afraid of something", "I was afraid of that once, too", "Being brave means trying even when you are scared")),
             f"{f.name} brought {aid}, and they tried it together, one small step at a time."],
            [f"{truth}.", self.one(f"{h.name} began to laugh.", f"{h.name} could hardly believe it.", f"Slowly {h.name} began to smile."),
             f"{h.He} had learned that {lesson}."],
        ]

    def broken(self):
        h, f = self.h, self.f
        thing, when, crash, mend = self.r.choice(BROKEN)
        owner, oshe, oher = self.r.choice(OWNERS)
        Owner = owner[0].upper() + owner[1:]
        self.theme = f"a broken {thing}"
        return [
            [f"{self.day}, {h.name} broke {owner}'s {thing} {when}.", f"{crash}.",
             self.one(f"{h.name} looked around. Nobody had seen it.", f"{h.name} stood very still and did not know what to do.")],
            [self.say(f.name, self.one("What happened?", "I heard a crash", "Oh dear, what a mess")),
             self.say(h.name, self.one("I broke it. Should I hide it?", "Perhaps nobody will notice", "I am scared to tell")),
             self.say(f.name, self.one("It is always better to tell the truth", "A lie only grows bigger", "Tell the truth. I will come with you"))],
            [f"So {h.name} went to {owner} and said, \"I am sorry. I broke your {thing}.\"",
             self.one(f"{Owner} was quiet for a moment.", f"{Owner} looked at the {thing} and then at {h.name}."),
             f"Then {oshe} smiled. \"Thank you for telling me the truth,\" {oshe} said. \"Let us mend it together.\""],
            [f"{h.name} and {owner} {mend}, while {f.name} held the lamp.",
             self.one(f"In the end the {thing} was almost as good as new.", f"You could hardly see where the {thing} had been broken."),
             self.one(f"{h.name} felt light again, because {h.he} had been honest.", f"{h.name} promised to be more careful.")],
        ]

    def building(self):
        h, f = self.h, self.f
        what, the, parts, fail, fix, win = self.r.choice(BUILDS)
        self.theme = f"building {what}"
        day = self.one("One snowy morning", "One bright winter morning") if "snow" in what else self.one("One sunny morning", "One cool morning", "Early one day", "On the first day of the holidays", "One Saturday morning")
        return [
            [f"{day}, {h.name} had an idea.", self.say(h.name, f"Let us build {what}!"),
             self.one(f"{f.name} clapped with joy.", f"{f.name} thought that this was a wonderful plan."),
             f"They gathered {list_of(parts)}."],
            [self.one(f"They worked all morning.", f"They worked until lunch without a rest.", f"It was hard work, but it was fun."),
             f"But {the} {fail}.",
             self.one(f"{f.name} wanted to give up.", f"{h.name} kicked a stone in anger.", f"They both looked at it and sighed.")],
            [self.say(self.one(h.name, f.name), self.one("Let us try again", "We only need to find out what went wrong", "Every mistake shows us something")),
             f"This time they {fix}.", self.one(f"They checked everything twice.", f"They took their time and did it well.")],
            [f"And now {the} {win}!", self.one(f"{h.name} and {f.name} cheered.", f"{h.name} threw {h.his} hat into the air.", f"\"We did it!\" shouted {f.name}."),
             self.one(f"They were proud because they had not given up.", f"Trying again had been worth it.")],
        ]

    def journey(self):
        h, f = self.h, self.f
        goal, sight, wonder = self.r.choice(PEAKS)
        block, bad, way = self.r.choice(BLOCKS)
        self.theme = f"a journey to {goal}"
        return [
            [f"{self.day}, {h.name} and {f.name} set out for {goal}.", self.begin(), f"They wanted to see {sight}.",
             self.one("They packed bread, cheese and two apples.", "They took a map, a rope and a bottle of water.", "They put on their strong boots and their warm coats.")],
            [f"Halfway there they came to {block}.", f"{bad}.",
             self.say(f.name, self.one("Now we can never get there", "What shall we do?", "Should we go back?")),
             self.say(h.name, self.one("There is always a way", "Let us think", "We have come so far. We will not turn back now"))],
            [f"They {way}.", self.one(f"{f.name} slipped once, but {h.name} held {f.him}.", "It was slow, but it worked.", f"{h.name} went first and {f.name} came after {h.him}.")],
            [f"At last they reached {goal}.", f"They sat down close together, and {wonder}.",
             self.one(f"Neither of them said a word.", f"\"It was worth every step,\" whispered {f.name}.", f"\"I will never forget this,\" said {h.name}.")],
        ]

    def sharing(self):
        h, f = self.h, self.f
        toy = self.r.choice(TOYS)
        self.theme = f"sharing a {toy}"
        return [
            [f"{self.day}, {h.name} and {f.name} found a {toy} near {self.outside}.", self.begin(), f"They both wanted to use it first.",
             self.say(h.name, "It is mine. I saw it first"), self.say(f.name, "No, it is mine")],
            [self.one(f"They pulled and pulled until they both fell over.", f"They shouted so loudly that the birds flew away.", f"They turned their backs to each other and did not speak."),
             self.one(f"After a while, {h.name} felt lonely.", f"Soon it was very quiet, and that was no fun at all.")],
            [self.say(h.name, self.one("I am sorry. You may go first", "Let us take turns", "A friend is better than a " + toy)),
             self.one(f"{f.name} was surprised and then smiled.", f"{f.name} said, \"I am sorry, too.\""),
             f"So {f.name} went first, and then it was {h.name}'s turn."],
            [self.one(f"They played with the {toy} until the sun went down.", f"With two of them, the {toy} was twice as much fun."),
             self.one(f"{h.name} learned that sharing makes things better.", "And nobody remembered who had seen it first.")],
        ]

    def night(self):
        h, f = self.h, self.f
        noise, cause = self.r.choice(NOISES)
        self.theme = "a strange noise in the night"
        return [
            [f"One night {f.name} came to stay, and the two friends lay in bed and talked.",
             self.one("The moon was shining through the window.", "Outside it was as dark as ink.", "The house was very still."),
             f"Suddenly they heard {noise}."],
            [self.say(f.name, self.one("What was that?", "Did you hear it, too?"), "whispered"),
             self.one(f"{h.name} pulled the blanket up to {h.his} nose.", f"{h.name} held {h.his} breath."), "There it was again!",
             self.say(h.name, self.one("Perhaps it is a ghost", "Let us find out what it is", "I will go if you come with me"), "whispered")],
            [f"They took a candle and went on tiptoe through the dark.", self.one("The floor creaked under their feet.", f"{f.name} held on to {h.name}'s sleeve."),
             f"{h.name} opened the door, and what did they see?", f"It was no ghost at all: {cause}."],
            [self.one("They looked at each other and laughed out loud.", f"{f.name} laughed so hard that the candle went out."),
             self.one("A noise is only scary until you know what it is.", "Then they drank some warm milk and went back to bed.")],
        ]

    def contest(self):
        h, f = self.h, self.f
        race, verb, mishap = self.r.choice(CONTESTS)
        self.theme = f"winning and losing {race}"
        snow = "sled" in race
        day = self.one("One snowy morning", "When the hill was white with snow") if snow else self.one("One sunny morning", "On a fine day in June", "At noon on Sunday", "One warm afternoon")
        return [
            [f"Everyone was talking about {race}.", f"{h.name} practised every day, for {h.he} could {verb} very fast.",
             f"{f.name} wanted to take part, too.", self.say(f.name, self.one("May the best one win", "Good luck, my friend"))],
            [f"{day}, the race began.", f"{h.name} was soon in front and could already see the finish.",
             f"But behind {h.him}, {f.name} {mishap}."],
            [self.one(f"{h.name} heard a cry and looked back.", f"{h.name} turned around and saw it."),
             self.one(f"If {h.he} stopped, {h.he} would lose.", f"The finish was so near."),
             f"But {h.name} stopped, went back and helped {f.name}.", "The others passed them, one after another."],
            [f"{h.name} and {f.name} came in last, side by side.", self.one("Yet everyone cheered for them louder than for the winner.", "The crowd clapped and clapped."),
             self.say(f.name, self.one("You could have won. Thank you", "You are a true friend")),
             self.say(h.name, self.one("A friend is worth more than a prize", "I would do it again"))],
        ]

    def gift(self):
        h, f = self.h, self.f
        gift, made, stuff = self.r.choice(GIFTS)
        self.theme = f"a birthday present for {f.name}"
        return [
            [f"{f.name}'s birthday was coming, and {h.name} had no money for a present.",
             self.one(f"{h.He} looked into the shop windows and sighed.", f"{h.He} turned out {h.his} pockets and found only a button.")],
            [f"Then {h.he} had an idea. {h.He} would make {gift}!", f"{h.name} looked for {stuff} near {self.outside} and found what {h.he} needed." if stuff not in ("wool", "paper") else f"{h.His} grandmother gave {h.him} some {stuff}.",
             f"For three evenings {h.he} sat by the fire and {made} with great care.",
             self.one(f"Once {h.he} made a mistake and had to begin again.", f"It was not easy, but {h.he} thought of {f.name} and went on.")],
            [f"On the birthday, there were many big boxes on the table.", f"{h.name}'s present was the smallest.", self.one(f"{h.He} felt a little ashamed.", f"{h.He} put it down quietly behind the others.")],
            [f"But when {f.name} opened it, {f.his} eyes grew wide.", self.say(f.name, self.one("You made this for me? It is the best present of all", "Nobody else has a present like this")),
             self.one(f"{h.name} blushed with joy.", "A gift made with love is never small.")],
        ]

    def newcomer(self):
        h, f = self.h, self.f
        third = Person(self.r, not_name=h.name, not_kind=h.kind)
        while third.name == f.name:
            third = Person(self.r, not_name=h.name, not_kind=h.kind)
        do, doing = self.r.choice(HOBBIES)
        self.theme = "a new friend"
        return [
            [f"{self.day}, a new family came to live near {self.house}.", self.begin(), f"Among them was {third.name}, a shy young {third.kind}.",
             f"{third.name} stood behind the fence and watched {h.name} and {f.name} play."],
            [self.one(f"{f.name} did not see {third.him}, but {h.name} did.", f"{h.name} saw that {third.name} was alone."),
             f"{h.name} remembered how it feels to be alone.", self.say(h.name, self.one("Would you like to play with us?", "Hello! What is your name?", "Come and join us")),
             f"{third.name} looked at the ground. \"I do not know your games,\" {third.he} said."],
            [self.say(f.name, self.one("Then show us one of yours", "We will teach you")),
             f"It turned out that {third.name} was very good at {doing}.", f"Soon all three of them tried to {do} together.",
             self.one(f"{h.name} was not good at it at first, and they all laughed.", f"{f.name} had never had so much fun.")],
            [f"When it was time to go in, {third.name} was not shy any more.", self.say(third.name, self.one("Will you come again tomorrow?", "I like it here", "Thank you for asking me")),
             f"\"{self.one('Of course', 'Every day', 'You can count on it')},\" said {h.name} and {f.name} together."],
        ]

    def storm(self):
        h, f = self.h, self.f
        shelter, dark = self.one(("a hollow tree", "inside the tree"), ("a small cave", "inside the cave"), ("an empty barn", "inside the barn"), ("an old mill", "inside the mill"))
        pastime = self.one("told each other stories", "sang every song they knew", "played guessing games", "shared their last apple")
        self.theme = "a storm"
        return [
            [f"{self.one('One warm afternoon', 'One summer day', 'One sunny morning', 'On a bright day in May')}, {h.name} and {f.name} had a picnic near {self.outside}.",
             self.one("They ate bread and jam and drank lemonade.", "They spread a blanket and ate cherries."),
             "Suddenly dark clouds covered the sky.", self.one("A cold wind began to blow.", "The first heavy drops began to fall.")],
            [self.say(f.name, self.one("A storm is coming! Run!", "We will never get home in time")),
             self.say(h.name, f"Look, there is {shelter}. We can wait there"), f"They took the blanket and ran as fast as they could."],
            [f"It was dark {dark}, but it was dry.", f"Outside the thunder rolled and the lightning flashed.", f"They wrapped themselves in the blanket and {pastime}.",
             self.one(f"{f.name} soon forgot to be afraid.", f"After a while the storm did not seem so bad.")],
            ["When the rain stopped, they looked out.", self.one("A wide rainbow stood over the wet fields.", "The whole world was shining, and the air smelled of earth and grass.", "Every leaf was bright with drops."),
             self.say(h.name, self.one("If it had not rained, we would not have seen this", "After rain comes sunshine"))],
        ]


PLOTS = [Story.lost_thing, Story.rescue, Story.cooking, Story.garden, Story.fear, Story.broken, Story.building, Story.journey,
         Story.sharing, Story.night, Story.contest, Story.gift, Story.newcomer, Story.storm]

REQUESTS = [
    "Tell me a story about {a_kind} named {name}.",
    "Tell me a story about {name} the {kind}.",
    "Write a short story about {theme}.",
    "Please tell me a story about {theme}.",
    "I would like a story about {a_kind} and {f_a_kind}.",
    "Can you tell me a story about {name} and {f_name}?",
    "Tell me a bedtime story about {theme}.",
    "Tell me a story with {a_kind} in it.",
]


def stories(count, seed):
    """Yields `count` stories; the same seed gives the same stories on every Python 3."""
    r = random.Random(seed)
    for _ in range(count):
        yield Story(r)


def request(story):
    """What someone might have asked to be told this story."""
    return story.r.choice(REQUESTS).format(a_kind=story.h.a_kind, kind=story.h.kind, name=story.h.name, theme=story.theme,
                                           f_name=story.f.name, f_a_kind=story.f.a_kind)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--stories", type=int, default=8000)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--requests", action="store_true", help="put the request that fits before each story")
    a = p.parse_args()
    for s in stories(a.stories, a.seed):
        if a.requests:
            sys.stdout.write("> " + request(s) + "\n")
        sys.stdout.write(s.text + "\n\n")


if __name__ == "__main__":
    main()
