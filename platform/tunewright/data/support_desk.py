"""Generates a support desk's tickets, the records wanted from them, and prose to pretrain a base model on.

The task: a free-text ticket in, one line of JSON out.

    Hello, I was charged twice for the wifi box. My order number is TW-48K1. There is no rush. Thanks, Maria
    {"intent":"billing","product":"router","priority":"low","order":"TW-48K1"}

Everything is a pure function of its arguments: the same on every machine, and for any PYTHONHASHSEED.
What is held out never occurs in training lines of any seed: combinations of (intent, product, priority),
order numbers, customer names, openings and closings. Held-out order numbers are in no pretraining document
either.
Knows nothing of tokenizers, files or chat formats.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from zlib import crc32

INTENT_PHRASES: dict[str, tuple[str, ...]] = {
    "refund": (
        "I would like my money back for the {item}",
        "please pay back what I spent on the {item}",
        "I sent back the {item} and still wait for the repayment",
        "can you reimburse me for the {item}",
        "I returned the {item} but the amount was never paid out",
    ),
    "delivery": (
        "the {item} has not arrived yet",
        "where is the parcel with my {item}",
        "the courier never brought the {item}",
        "my {item} was due last week and is still on its way",
        "tracking for the {item} has not moved for days",
    ),
    "defect": (
        "the {item} stopped working",
        "the {item} no longer turns on",
        "the {item} came out of the box with a crack",
        "my {item} keeps failing after an hour",
        "the {item} makes a strange noise and goes dark",
    ),
    "billing": (
        "I was charged twice for the {item}",
        "the invoice for the {item} shows the wrong amount",
        "my bank statement lists the {item} two times",
        "the price billed for the {item} is not what we agreed",
        "the tax on the bill for the {item} is wrong",
    ),
    "cancel": (
        "please stop the purchase of the {item}, I changed my mind",
        "call off my purchase of the {item}",
        "I no longer need the {item}, do not send it",
        "I want to withdraw from buying the {item}",
        "drop the {item} from my basket before it ships",
    ),
    "account": (
        "I cannot sign in to the app of the {item}",
        "the portal for the {item} rejects my password",
        "the login for my {item} is locked",
        "I forgot the passcode for my {item} profile",
        "my user name for the {item} is not accepted",
    ),
    "setup": (
        "how do I connect the {item} to the network",
        "which steps install the {item}",
        "I need help to get the {item} running for the first time",
        "where is the guide for the {item}",
        "the manual does not say how to pair the {item}",
    ),
}

PRODUCT_NAMES: dict[str, tuple[str, ...]] = {
    "router": ("router", "wifi box", "wireless base station"),
    "headset": ("headset", "headphones", "earphones"),
    "camera": ("camera", "video doorbell", "door cam"),
    "thermostat": ("thermostat", "heating control", "room heat dial"),
    "printer": ("printer", "laser copier", "ink jet"),
    "tablet": ("tablet", "slate", "touch screen pad"),
    "speaker": ("speaker", "sound bar", "music box"),
    "watch": ("watch", "fitness band", "step tracker"),
}

PRIORITY_PHRASES: dict[str, tuple[str, ...]] = {
    "high": (
        "we cannot work until this is solved",
        "I need an answer today",
        "our shop stands still because of this",
        "this is urgent",
        "please treat this before anything else",
    ),
    "normal": (
        "please look into it this week",
        "an answer in the next few days would be fine",
        "please handle it in the usual way",
        "I look forward to your reply within the week",
        "please put it in the regular queue",
    ),
    "low": (
        "there is no rush",
        "this can wait",
        "answer whenever you have time",
        "take as long as you need",
        "next month is early enough",
    ),
}

ORDER_PHRASES = (
    "my order number is {order}",
    "it is about order {order}",
    "the order was {order}",
    "reference {order}",
    "you can find it under {order}",
    "this concerns {order}",
)
NO_ORDER_PHRASES = ("I do not have the order number here", "I lost the order number", "")

OPENINGS = (
    "Hello", "Hi", "Hi there", "Good morning", "Good evening", "Good afternoon", "Dear team", "Dear support",
    "Hello team", "Hello support", "Hi team", "Hi support", "Good day", "Greetings", "Dear sir or madam",
    "To the help desk", "Dear help desk", "Hello everyone", "Hi all", "Hi folks", "Hello again",
    "Dear service",
)  # fmt: skip
CLOSINGS = (
    "Thanks", "Thank you", "Many thanks", "Best", "Best regards", "Kind regards", "Regards", "Cheers",
    "Yours",
    "Best wishes", "Thanks a lot", "Thanks in advance", "Greetings", "With thanks", "Warm regards",
    "Sincerely",
    "Thank you so much", "All the best", "Have a nice day", "Yours truly",
)  # fmt: skip
CUSTOMERS = (
    "Maria", "John", "Ana", "Peter", "Lena", "Omar", "Julia", "David", "Sofia", "Mark", "Emma", "Lucas",
    "Nina",
    "Paul", "Clara", "Ivan", "Laura", "Tom", "Eva", "Karim", "Sara", "Felix", "Ruth", "Hugo", "Alice", "Ben",
    "Mona", "Erik", "Diana", "Leo", "Irene", "Max", "Carla", "Noah", "Greta", "Simon", "Olga", "Adam", "Vera",
    "Jonas", "Rosa", "Victor", "Helen", "Martin", "Amira", "Oscar", "Paula", "Henry",
)  # fmt: skip
CITIES = (
    "Berlin", "Paris", "Madrid", "Rome", "Vienna", "Oslo", "Dublin", "Lisbon", "Prague", "Athens", "Warsaw",
    "London", "Munich", "Lyon", "Porto", "Turin",
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")

# Published by the card networks for tests: Luhn-valid, never issued.
TEST_CARD_NUMBERS = ("4242 4242 4242 4242", "4111111111111111", "5555-5555-5555-4444", "378282246310005")

RECORD_KEYS = ("intent", "product", "priority", "order")

DIRTY_KINDS = ("broken_json", "empty_answer", "duplicate", "email", "card")
CLEAN = "clean"

# One in this many is held out; a prime, so that it does not follow the digits of order numbers.
HELDOUT_ONE_IN = 7
_DUPLICATE_WINDOW_ROWS = 512
_ORDER_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"  # without I and O, which read as digits


def training_lines(rows: int, seed: int, dirty_fraction: float = 0.04) -> Iterator[str]:
    """Yield `rows` JSON lines of training conversations, a share of them deliberately dirty.

    A clean line is {"messages": [user, assistant]}. The dirty ones, about equally often:
    broken_json (cut off in the middle), empty_answer, duplicate (of an earlier clean line, byte for byte),
    and two that are valid but hold personal data in the ticket: email, card. No other line repeats a ticket.
    A shorter call's lines are the first lines of a longer call with the same seed.
    """
    seen: set[str] = set()
    recent: list[str] = []
    for row, kind in enumerate(_row_kinds(rows, seed, dirty_fraction)):
        rng = _rng("training", seed, row)
        if kind == "duplicate":
            yield rng.choice(recent)
            continue
        ticket, answer = _draw_unseen(rng, seen, heldout=False)
        match kind:
            case "broken_json":
                line = _conversation_line(ticket, answer)
                yield line[: rng.randrange(len(line) // 3, len(line) - 2)]
            case "empty_answer":
                yield _conversation_line(ticket, "")
            case "email" | "card":
                yield _conversation_line(_with_personal_data(rng, ticket, kind), answer)
            case _:
                line = _conversation_line(ticket, answer)
                recent = [*recent[1 - _DUPLICATE_WINDOW_ROWS :], line]
                yield line


def dirty_counts(rows: int, seed: int, dirty_fraction: float = 0.04) -> dict[str, int]:
    """Return how many lines of each dirty kind `training_lines` yields for the same arguments."""
    counts = Counter(_row_kinds(rows, seed, dirty_fraction))
    return {kind: counts[kind] for kind in DIRTY_KINDS}


def heldout_lines(rows: int, seed: int) -> Iterator[str]:
    """Yield `rows` clean JSON lines of held-out combinations, orders, names, openings and closings alone."""
    seen: set[str] = set()
    for row in range(rows):
        yield _conversation_line(*_draw_unseen(_rng("heldout", seed, row), seen, heldout=True))


def pretraining_documents(documents: int, seed: int) -> Iterator[str]:
    """Yield `documents` short support-desk texts, most of which mention a number or name and later repeat it.

    None holds a ticket followed by its record in the task's schema; records here are of parcels and calls.
    """
    for document in range(documents):
        rng = _rng("pretraining", seed, document)
        writer = rng.choices(_DOCUMENT_WRITERS, weights=_DOCUMENT_WEIGHTS)[0]
        yield writer(rng)


def is_heldout(text: str) -> bool:
    """Return whether a filler or an "intent|product|priority" combination belongs to the held-out share."""
    return crc32(f"desk:{text}".encode()) % HELDOUT_ONE_IN == 0


def _rng(stream: str, seed: int, index: int) -> random.Random:
    # A string seed goes through SHA-512, so neither PYTHONHASHSEED nor neighbouring indices matter.
    return random.Random(f"{stream}:{seed}:{index}")


def _row_kinds(rows: int, seed: int, dirty_fraction: float) -> Iterator[str]:
    rng = random.Random(f"kinds:{seed}")
    any_clean = False
    for _ in range(rows):
        kind = rng.choice(DIRTY_KINDS) if rng.random() < dirty_fraction else CLEAN
        if kind == "duplicate" and not any_clean:
            kind = CLEAN
        any_clean = any_clean or kind == CLEAN
        yield kind


def _partition(values: Sequence[str], heldout: bool) -> tuple[str, ...]:
    return tuple(value for value in values if is_heldout(value) == heldout)


_COMBINATIONS = tuple(
    f"{intent}|{product}|{priority}"
    for intent in INTENT_PHRASES
    for product in PRODUCT_NAMES
    for priority in PRIORITY_PHRASES
)
# Indexed by `heldout`.
_COMBINATIONS_OF = (_partition(_COMBINATIONS, False), _partition(_COMBINATIONS, True))
_OPENINGS_OF = (_partition(OPENINGS, False), _partition(OPENINGS, True))
_CLOSINGS_OF = (_partition(CLOSINGS, False), _partition(CLOSINGS, True))
_CUSTOMERS_OF = (_partition(CUSTOMERS, False), _partition(CUSTOMERS, True))


def _order_number(rng: random.Random, heldout: bool = False) -> str:
    while True:
        order = f"TW-{rng.randrange(100):02d}{rng.choice(_ORDER_LETTERS)}{rng.randrange(10)}"
        if is_heldout(order) == heldout:
            return order


def _draw_unseen(rng: random.Random, seen: set[str], heldout: bool) -> tuple[str, str]:
    while True:
        ticket, answer = _draw(rng, heldout)
        if ticket not in seen:
            seen.add(ticket)
            return ticket, answer


def _draw(rng: random.Random, heldout: bool) -> tuple[str, str]:
    """Return one ticket and the record wanted from it."""
    intent, product, priority = rng.choice(_COMBINATIONS_OF[heldout]).split("|")
    order = _order_number(rng, heldout) if rng.random() < 0.8 else None
    record = {"intent": intent, "product": product, "priority": priority, "order": order}

    request = _request(rng, intent, product)
    order_phrase = rng.choice(ORDER_PHRASES).format(order=order) if order else rng.choice(NO_ORDER_PHRASES)
    middle = [request, order_phrase] if rng.random() < 0.7 else [order_phrase, request]
    urgency = rng.choice(PRIORITY_PHRASES[priority])
    sentences = [*middle, urgency] if rng.random() < 0.7 else [urgency, *middle]

    body = " ".join(_sentence(phrase) for phrase in sentences if phrase)
    opening = f"{rng.choice(_OPENINGS_OF[heldout])}. " if rng.random() < 0.6 else ""
    closing = f" {rng.choice(_CLOSINGS_OF[heldout])}, {rng.choice(_CUSTOMERS_OF[heldout])}"
    ticket = opening + body + (closing if rng.random() < 0.6 else "")
    return ticket, json.dumps(record, separators=(",", ":"))


def _request(rng: random.Random, intent: str, product: str) -> str:
    return rng.choice(INTENT_PHRASES[intent]).format(item=rng.choice(PRODUCT_NAMES[product]))


def _sentence(phrase: str) -> str:
    is_question = phrase.startswith(("how ", "which ", "where ", "can you "))
    return phrase[0].upper() + phrase[1:] + ("?" if is_question else ".")


def _with_personal_data(rng: random.Random, ticket: str, kind: str) -> str:
    if kind == "email":
        address = f"{rng.choice(_CUSTOMERS_OF[False]).lower()}.{rng.randrange(100)}@example.com"
        return f"{ticket} Write to {address}"
    return f"{ticket} I paid with card {rng.choice(TEST_CARD_NUMBERS)}"


def _conversation_line(ticket: str, answer: str) -> str:
    messages = [{"role": "user", "content": ticket}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages})


# Writers of pretraining documents. Names and greetings come from the whole lists: a base model has met
# common words,
# and a tokenizer that had not would spell them letter by letter. Order numbers never come from the held-out
# part.


def _customer(rng: random.Random) -> str:
    return rng.choice(CUSTOMERS)


def _item(rng: random.Random) -> str:
    return rng.choice(PRODUCT_NAMES[rng.choice(tuple(PRODUCT_NAMES))])


def _any_request(rng: random.Random) -> str:
    return _request(rng, rng.choice(tuple(INTENT_PHRASES)), rng.choice(tuple(PRODUCT_NAMES)))


def _any_urgency(rng: random.Random) -> str:
    return rng.choice(PRIORITY_PHRASES[rng.choice(tuple(PRIORITY_PHRASES))])


def _order_confirmation(rng: random.Random) -> str:
    order, customer, item, city = _order_number(rng), _customer(rng), _item(rng), rng.choice(CITIES)
    return (
        f"{rng.choice(OPENINGS)} {customer}. Your order {order} for the {item} is confirmed. "
        f"We ship the {item} to {city}. Keep {order} ready. {rng.choice(CLOSINGS)}, {_customer(rng)}"
    )


def _dialogue(rng: random.Random) -> str:
    order, customer = _order_number(rng), _customer(rng)
    request = _sentence(_any_request(rng))
    mention = _sentence(rng.choice(ORDER_PHRASES).format(order=order))
    turns = [
        f"{customer}: {request} {mention}",
        f"Desk: Thank you, {customer}. I have {order} open.",
        f"{customer}: {_sentence(_any_urgency(rng))}",
        f"Desk: We write to you about {order} on {rng.choice(WEEKDAYS)}.",
    ]
    return "\n".join(turns[: rng.choice((2, 4))])


def _letter(rng: random.Random) -> str:
    phrases = [
        _any_request(rng),
        rng.choice(ORDER_PHRASES).format(order=_order_number(rng)),
        _any_urgency(rng),
    ]
    if rng.random() < 0.2:
        phrases[1] = rng.choice(NO_ORDER_PHRASES[:2])
    rng.shuffle(phrases)
    body = " ".join(_sentence(phrase) for phrase in phrases)
    return f"{rng.choice(OPENINGS)}. {body} {rng.choice(CLOSINGS)}, {_customer(rng)}"


def _parcel_record(rng: random.Random) -> str:
    order, city, item, day = _order_number(rng), rng.choice(CITIES), _item(rng), rng.choice(WEEKDAYS)
    known = rng.random() < 0.8
    mention = _sentence(rng.choice(ORDER_PHRASES).format(order=order)) if known else "The number is missing."
    facts = [f"The {item} goes to {city}.", mention, f"The van leaves on {day}."]
    rng.shuffle(facts)
    fields = [("item", item), ("city", city), ("day", day), ("parcel", order if known else None)]
    rng.shuffle(fields)
    return f"{' '.join(facts)}\n{json.dumps(dict(fields), separators=(',', ':'))}"


def _call_note(rng: random.Random) -> str:
    order, customer, item, day = _order_number(rng), _customer(rng), _item(rng), rng.choice(WEEKDAYS)
    story = f"On {day} {customer} called about the {item}. {_sentence(f'this concerns {order}')}"
    return f"{story}\nname: {customer}\nday: {day}\nnumber: {order}\nitem: {item}"


def _scan_log(rng: random.Random) -> str:
    order = _order_number(rng)
    stages = rng.sample(
        ("received", "sorted", "weighed", "labelled", "loaded", "delivered"), rng.randrange(2, 6)
    )
    return f"Scan log of {order}\n" + "\n".join(f"{order} {stage}" for stage in stages)


def _checked_list(rng: random.Random) -> str:
    """Return a list of unrelated entries, then the same list: nothing but copying predicts the second."""
    drawers = (_order_number, _order_number, _customer, _item, lambda rng: rng.choice(CITIES))
    entries = [rng.choice(drawers)(rng) for _ in range(rng.randrange(3, 11))]
    listed = ", ".join(entries)
    return f"packed: {listed}\nchecked: {listed}"


def _handbook_entry(rng: random.Random) -> str:
    """Return a text that uses the desk's own words for things, so that a tokenizer learns them whole."""
    if rng.random() < 0.3:
        product = rng.choice(tuple(PRODUCT_NAMES))
        return f"Handbook: {product} is the shelf name of {' or '.join(PRODUCT_NAMES[product])}"
    words = rng.choice((tuple(INTENT_PHRASES), tuple(PRODUCT_NAMES), (*PRIORITY_PHRASES, None), RECORD_KEYS))
    listed = json.dumps(rng.sample(words, rng.randrange(2, len(words) + 1)), separators=(",", ":"))
    return f"Handbook: {rng.choice(WEEKDAYS)} report\nrows {listed}\nsums {listed}"


def _lookup_table(rng: random.Random) -> str:
    pairs = [(_customer(rng), _order_number(rng)) for _ in range(rng.randrange(2, 5))]
    asked = rng.choice(pairs)
    pairs = [pair for pair in pairs if pair[0] != asked[0] or pair is asked]
    table = "\n".join(f"{customer} has {order}" for customer, order in pairs)
    return f"{table}\nSo {asked[0]} has {asked[1]}"


_DOCUMENT_WRITERS: tuple[Callable[[random.Random], str], ...] = (
    _order_confirmation, _dialogue, _letter, _parcel_record, _call_note, _scan_log, _checked_list,
    _lookup_table, _handbook_entry,
)  # fmt: skip
_DOCUMENT_WEIGHTS = (2, 2, 1, 6, 3, 5, 1, 1, 2)
