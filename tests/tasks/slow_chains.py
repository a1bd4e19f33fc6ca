"""All chains over some numbers by recursion: the slow oracle of `Ways.results` and `chain`."""


def chains(numbers, limit):
    """Chain -> value, over numbers in rising order: a chain is its steps and its expression."""
    found = {}

    def grow(steps, text, last, value, rest):
        if not rest:
            found[", ".join(steps), text] = value
        for index, number in enumerate(rest):
            left = rest[:index] + rest[index + 1 :]
            inner = f"({text})" if last in ("+", "-") else text
            for step, whole, sign, result in (
                (f"{value}+{number}", f"{text}+{number}", "+", value + number),
                (f"{value}*{number}", f"{inner}*{number}", "*", value * number),
                (f"{value}-{number}", f"{text}-{number}", "-", value - number),
                (f"{number}-{value}", f"{number}-{inner}", "-", number - value),
            ):
                if 1 <= result <= limit:
                    grow((*steps, f"{step}={result}"), whole, sign, result, left)

    for one, low in enumerate(numbers):
        for two, high in enumerate(numbers):
            if one < two:
                rest = tuple(number for place, number in enumerate(numbers) if place not in (one, two))
                for text, sign, result in (
                    (f"{low}+{high}", "+", low + high),
                    (f"{low}*{high}", "*", low * high),
                    (f"{high}-{low}", "-", high - low),
                ):
                    if 1 <= result <= limit:
                        grow((f"{text}={result}",), text, sign, result, rest)
    return found
