"""What a model is asked: the categories and kinds in which it was measured to be above chance."""

from jvidprune.evals.subset import Subset, answerable
from jvidprune.procedural.benchmark import Procedural

TABLE = """given,category,kind,questions,right,accuracy,chance
all tokens,all,all,300,200,0.66,0.3
all tokens,attribute,all,200,150,0.75,0.3
all tokens,attribute,short,100,90,0.9,0.2
all tokens,attribute,choice,100,30,0.3,0.25
all tokens,order,choice,16,12,0.74,0.5
all tokens,hallucination,yes_no,16,13,0.76,0.5
text alone,counting,short,100,90,0.9,0.25
"""


def test_only_what_lies_two_standard_errors_above_chance_is_answerable(tmp_path):
    path = tmp_path / "accuracy.csv"
    path.write_text(TABLE)
    assert answerable(path) == [("attribute", "short"), ("hallucination", "yes_no")]


def test_a_subset_asks_these_questions_of_clips_made_for_them():
    pairs = [("attribute", "short"), ("hallucination", "yes_no")]
    whole = Procedural("test", clips=60, categories=("attribute", "counting", "hallucination"))
    part = Subset(whole, pairs, clips=7)
    assert (len(part), part.categories) == (7, ("attribute", "hallucination"))
    originals = {whole[i].id: whole[i] for i in range(len(whole))}
    for i in range(len(part)):
        asked = part[i].questions
        assert asked[0] == originals[part[i].id].questions[0]
        assert {(q.category, q.kind) for q in asked} <= set(pairs)
        assert set(asked) <= set(originals[part[i].id].questions)
    assert part[0].load().frames.shape == (8, 84, 84, 3)
    assert Subset(whole, pairs, clips=6).fingerprint() != part.fingerprint()
    assert Subset(whole, pairs[:1], clips=7).fingerprint() != part.fingerprint()
    assert Subset(whole, pairs[::-1], clips=7).fingerprint() == part.fingerprint()
