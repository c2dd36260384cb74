"""The questions that each lesson asks about earlier ones."""

from __future__ import annotations

from typing import NamedTuple


class Question(NamedTuple):
    """A question with options; `right` is the letter of the right one, and `why` explains it."""

    text: str
    options: tuple[str, ...]
    right: str
    why: str


QUESTIONS = {
    "02.1": Question(
        "A text becomes twice as long. What happens to the table of attention's scores?",
        ("It doubles.", "It becomes four times as large.", "It stays the same."),
        "b",
        "There is one score for each pair of positions, so it grows with the square of the length.",
    ),
    "02.2": Question(
        "Without its mask, a model predicts its training text almost perfectly. Why?",
        (
            "It has more weights.",
            "Attention is more accurate without the mask.",
            "It reads the byte that it is asked for.",
        ),
        "c",
        "At each position the next byte is among the keys, so nothing has to be predicted.",
    ),
    "03.1": Question(
        "Without the softmax, attention can be computed as Q (K^T V). What makes that cheaper?",
        (
            "K^T V has the size of a head, whatever the length.",
            "Multiplying matrices is faster from the right.",
            "Fewer weights are needed.",
        ),
        "a",
        "The product of keys and values is a K x V matrix; no table of pairs is ever made.",
    ),
    "03.2": Question(
        "Why does linear attention need a feature map that is above zero?",
        (
            "So that the queries stay short.",
            "So that the normaliser, a sum of its products, cannot come near zero.",
            "So that it becomes causal.",
        ),
        "b",
        "The output is divided by the sum of the weights; with both signs that sum can vanish.",
    ),
    "04.1": Question(
        "How large is the state of the kernel for a width of D?",
        ("D numbers", "D times D numbers", "One number for each byte of the text"),
        "a",
        "Its heads have a width of one, so each keeps one number: a key times a value, summed.",
    ),
    "04.2": Question(
        "Why has this kernel no normaliser?",
        (
            "Because sums of keys and values cannot grow.",
            "Because it would be too slow.",
            "Because with heads of width one the query would cancel.",
        ),
        "c",
        "The query is a single factor above and below the fraction bar, so the query would say "
        "nothing.",
    ),
    "05.1": Question(
        "Steps of zero mean are summed over t positions. How does the size of the sum grow?",
        ("Like the square root of t", "Like t", "Not at all"),
        "a",
        "Independent steps cancel in part: the variance grows with t, so the size with its root.",
    ),
    "05.2": Question(
        "Why does a long sum in bfloat16 stop growing?",
        (
            "It overflows.",
            "A step below half the gap between neighbouring numbers is rounded away.",
            "The gradients vanish.",
        ),
        "b",
        "Numbers of 8 bits precision around 256 are 2 apart, and adding 1 then changes nothing.",
    ),
    "06.1": Question(
        "What does the address of an addressed sum depend on?",
        (
            "On learned queries and keys",
            "On the position in the text",
            "On a hash of the last bytes or words",
        ),
        "c",
        "Equal contexts have equal hashes, so a context finds the row that it wrote before.",
    ),
    "06.2": Question(
        "An address already contains the byte that is to be predicted. What follows?",
        (
            "The model sees the future.",
            "Two contexts collide.",
            "The state grows with the text.",
        ),
        "a",
        "In training and evaluation the row holds the answer; in use, there is none to hold.",
    ),
    "07.1": Question(
        "A patch of eight bytes is folded into one vector. Which byte may first use it?",
        (
            "The first byte of the patch",
            "The last byte of the patch, which predicts the byte after the patch",
            "The first byte of the patch after the next",
        ),
        "b",
        "With its last byte the patch is complete, and the next byte is still unknown.",
    ),
    "07.2": Question(
        "A model reaches 0.8 bits per byte on random bytes. What do you conclude?",
        ("It generalises well.", "It has learned the text by heart.", "It leaks."),
        "c",
        "Fresh random bytes cannot be predicted: any model that is honest needs 8 bits for each.",
    ),
    "08.1": Question(
        "Three projections are fused into one. What changes?",
        (
            "The number of calls",
            "The number of parameters",
            "The number of multiplications",
        ),
        "a",
        "It is the same arithmetic in one call. This pays where the calls are most of the time.",
    ),
    "08.2": Question(
        "How can you see from outside which bytes an output depends on?",
        (
            "Count the parameters.",
            "Change one byte and look which outputs change.",
            "Compare the losses of two models.",
        ),
        "b",
        "An output that changes depends on that byte; if it comes earlier, the model leaks.",
    ),
    "09.1": Question(
        "A new model gives each of the 256 bytes the same probability. What is its loss?",
        ("0 nats", "About 5.5 nats, ln 256", "256 nats"),
        "b",
        "Each byte has a probability of 1/256, and the loss is minus its logarithm.",
    ),
    "09.2": Question(
        "What does a skip connection around each layer give to a deep model?",
        (
            "The input, and the gradient, reach every layer directly.",
            "Fewer parameters",
            "A longer memory",
        ),
        "a",
        "A layer adds to what is there instead of replacing it.",
    ),
    "10.1": Question(
        "Where does the recall of qllk-3 keep which byte followed a context?",
        (
            "In its weights, which training has changed",
            "In the last seven inputs of a convolution",
            "In a row of its state, which a hash of the context chooses",
        ),
        "c",
        "It is learned while reading; the weights only say how to use what is found there.",
    ),
    "10.2": Question(
        "What is the learning rate during warm-up?",
        ("It rises from almost zero.", "It falls along a cosine.", "It is constant."),
        "a",
        "The first gradients of a new model say little, so the first steps are small.",
    ),
    "11.1": Question(
        "Why does a byte cost this model the same after ten bytes and after a million?",
        (
            "It forgets everything but the last bytes.",
            "Its state has a constant size.",
            "It guesses several bytes at a time.",
        ),
        "b",
        "All that it knows of the text is in a state of fixed size, which is read and updated.",
    ),
    "11.2": Question(
        "All addresses of a recall lead to one single row. What does a read find there?",
        (
            "What followed the same context before",
            "The mean of all that was written",
            "What the latest write left, which belongs to another context as a rule",
        ),
        "c",
        "Each write replaces the one before it, so a memory of one row has forgotten the rest.",
    ),
    "12.1": Question(
        "Without positions, what does attention know about the order of the bytes before it?",
        (
            "All of it: the mask tells the places apart.",
            "Only which byte came last.",
            "Nothing, since a sum over keys does not depend on their order.",
        ),
        "c",
        "The keys are a set; the mask only says which of them are in it.",
    ),
    "12.2": Question(
        "Two models differ by 0.02 bits with one seed each. What do you know?",
        (
            "That the better one has the better part.",
            "Little: the seeds of one model may differ by as much.",
            "That both need more parameters.",
        ),
        "b",
        "A gap counts when it is larger than the spread of the seeds.",
    ),
    "13.1": Question(
        "Attention over the past is done in two pieces. Each has its average, and the logarithm of "
        "its sum of exponentials. What is the average over the whole past?",
        (
            "The mean of the two averages",
            "Both averages, each weighted by its share of the exponentials",
            "It cannot be told without the scores.",
        ),
        "b",
        "An average is one sum divided by another, and sums over pieces add up.",
    ),
    "13.2": Question(
        "In float16, 300 times 300 is inf. What is left of it behind a gate that is shut?",
        ("0, since the gate is 0", "65,504, the largest number", "nan, since 0 times inf is nan"),
        "c",
        "A number that has overflowed is lost, and spoils whatever it is multiplied with or "
        "subtracted from.",
    ),
    "14.1": Question(
        "What does attention keep for each byte that it has read, while it writes?",
        (
            "A row of the table of scores",
            "A key and a value for each head",
            "Nothing: the weights are enough",
        ),
        "b",
        "Later queries need them; this cache grows with the text.",
    ),
    "14.2": Question(
        "How do you find out from outside what a position of a model has seen?",
        (
            "Change one input, and see which outputs change.",
            "Look at the names of its layers.",
            "Compare its loss with that of another model.",
        ),
        "a",
        "What changes nothing was not seen; this is the X-ray.",
    ),
    "15.1": Question(
        "A sum never forgets. Where does that hurt?",
        (
            "Where the frequencies of a text change.",
            "Where the text is long and always of the same kind.",
            "Where the bytes are random.",
        ),
        "a",
        "What was counted in an old mood is wrong in the new one; a half-life lets it fade.",
    ),
    "15.2": Question(
        "Linear attention has keys and values of width K. How large is its state?",
        ("T times T, one number for each pair", "K times K for each head", "K for each head"),
        "b",
        "It adds up outer products of keys and values, whatever the length of the text.",
    ),
    "16.1": Question(
        "Why does a model that predicts the next byte need a mask in training?",
        (
            "So that the table of scores fits into memory.",
            "So that no position sees the byte that it is asked for.",
            "So that all rows of a batch have the same length.",
        ),
        "b",
        "All positions are trained at once, and each one's target is the input of the next.",
    ),
    "16.2": Question(
        "When is a win over another model evidence for one of its parts?",
        (
            "When the same model without that part, its control, loses by more than the spread.",
            "When the loss falls faster in the first steps.",
            "When the model has more parameters.",
        ),
        "a",
        "Everything else may be the cause as well, unless it is the same in both.",
    ),
    "17.1": Question(
        "A model pays 2.1 nats per byte. How many bits per byte are that?",
        ("1.5", "2.1", "3.0"),
        "c",
        "A bit is ln 2 = 0.69 nats, so the same loss is a larger number of bits.",
    ),
    "17.2": Question(
        "Why is a model judged on text that was held out?",
        (
            "Because it may know by heart what it was trained on.",
            "Because held-out text is shorter, so the judgement takes less time.",
            "Because its loss there is always lower.",
        ),
        "a",
        "Only on text that it has not read does a low loss show what it has learned in general.",
    ),
}
