"""Methods as they are written: both forms say the same, what is printed is read again, and nothing else is read."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jvidprune import backbones
from jvidprune.errors import JvidpruneError
from jvidprune.expressions import Call, Chain, parse, parse_call, split_list
from jvidprune.ops.transport import Dustbin, FixedSinkhorn, Transport
from jvidprune.reducers import registry
from jvidprune.reducers.compose import chain
from jvidprune.reducers.writing import expression

ALIASES = {
    "flashvid": "flashvid()",
    "flashvid:alpha=0.5,distinct=True": "flashvid(alpha=0.5, distinct=True)",
    "flashvid:method=attn_div": "flashvid( method = 'attn_div' )",
    "stop:base=fastvid": "stop(base=fastvid)",
    "stop:base=(flashvid:alpha=0.5,eps=1e-6),mu_s=0.1": "stop(base=flashvid(alpha=0.5, eps=1e-6), mu_s=0.1)",
    "stop:base=(visionzip+flashvid)": "stop(base=visionzip + flashvid)",
    "visionzip+flashvid:eps=1e+3": "visionzip + flashvid(eps=1e+3)",
    "sequential:first=visionzip,second=flashvid,split=0.3": "sequential(first=visionzip, second=flashvid, split=0.3)",
    "aot:intra_transport=(Transport:solver=(Dustbin:solver=(Sinkhorn:epsilon=0.5),mass=0.2))": "aot(intra_transport="
    "Transport(solver=Dustbin(solver=Sinkhorn(epsilon=0.5), mass=0.2)))",
    "ottvid:centroid_grid=[13, 13]": "ottvid(centroid_grid=(13, 13))",
    "random:seed=-3": "random(seed=-3)",
    "frame-drop": "frame-drop()",
}


@pytest.mark.parametrize("backbone", [None, "llava_video"])
@pytest.mark.parametrize(("colon", "python"), ALIASES.items())
def test_both_forms_make_the_same(colon, python, backbone):
    made = registry.from_text(colon, backbone)
    assert registry.from_text(python, backbone) == made
    assert split_list(f"{colon},{python} , none") == [colon, python, "none"]


@pytest.mark.parametrize("backbone", [None, *backbones.NAMES])
@pytest.mark.parametrize("name", [*registry.names(), *registry.combinators()])
def test_what_is_written_of_a_reducer_makes_it_again(name, backbone):
    made = registry.get(name, backbone)
    chained = name == "sequential" and backbone is None
    assert expression(made, backbone) == ("visionzip + flashvid" if chained else name)
    assert registry.from_text(expression(made)) == made
    assert registry.from_text(expression(made, "llava_onevision"), "llava_onevision") == made


def test_only_settings_that_differ_are_written():
    made = registry.get("aot", intra_transport=Transport(solver=Dustbin(solver=FixedSinkhorn())), clips=(3, 5))
    assert expression(made) == "aot(clips=[3, 5], intra_transport=Transport(solver=Dustbin(solver=FixedSinkhorn)))"
    text = "aot(intra_transport=Transport(solver=Sinkhorn(epsilon=0.2), projection=row))"
    assert expression(registry.from_text(text)) == text
    stop = registry.from_text("stop(base=flashvid(alpha=0.7, expansion=2.0), mu_s=0.03)")
    assert expression(stop) == "stop(base=flashvid(expansion=2.0), mu_s=0.03)", "0.7 is what SToP's runs pass"
    assert registry.from_text(expression(stop)) == stop


def test_chains_are_read_in_the_order_they_run_in():
    one, two = registry.get("visionzip"), registry.get("flashvid", alpha=0.2)
    for text, made in (
        ("visionzip + flashvid(alpha=0.2)", chain(one, two)),
        ("visionzip + visionzip + flashvid(alpha=0.2)", chain(one, one, two)),
        ("visionzip + (visionzip + flashvid(alpha=0.2))", chain(one, chain(one, two))),
        ("sequential(second=flashvid(alpha=0.2), split=0.3)", chain(one, two, shares=[0.3, 0.7])),
    ):
        assert registry.from_text(text) == made
        assert expression(made) == text
    assert parse("a + b + c") == parse("(a + b) + c") != parse("a + (b + c)")


def test_a_part_of_a_text_is_what_was_typed():
    assert parse("f(a=1e+3, b = x-y)") == Call("f", {"a": 1000.0, "b": "x-y"}, ("a=1e+3", "b=x-y"))
    assert parse("f(a=g(b = 1) + h, c='g(')") == Call(
        "f", {"a": "g(b = 1) + h", "c": "g("}, ("a=g(b = 1) + h", "c='g('")
    )
    own = parse("./a-b.py:Mine(x=1) + mod.part:Mine + f(base=m:C)")
    assert isinstance(own, Chain)
    assert [stage.name for stage in own.stages if isinstance(stage, Call)] == ["./a-b.py:Mine", "mod.part:Mine", "f"]
    assert own.stages[2] == Call("f", {"base": "m:C"}, ("base=m:C",))
    assert parse("C:\\x\\a.py:Mine") == Call("C:\\x\\a.py:Mine", {}, ())
    assert parse("m:C:x=1,y=(m:C)") == Call("m:C", {"x": 1, "y": "m:C"}, ("x=1", "y=(m:C)"))
    assert split_list("m:C(x='a,b', y=(1, 2)),f:x=1,y=2,g") == ["m:C(x='a,b', y=(1, 2))", "f:x=1,y=2", "g"]
    assert registry.title("stop(base=flashvid(alpha=0.5), mu_s=0.03)") == "SToP (base=flashvid(alpha=0.5), mu_s=0.03)"
    assert registry.title("visionzip + flashvid(eps=1e+3)") == "VisionZip → FlashVID (eps=1e+3)"


HOSTILE = {
    "": "lacks a name",
    " + flashvid": "neither a name nor name\\(setting=value\\), here '\\+ flashvid'",
    "flashvid +": "cannot be read",
    "flashvid(": "brackets of 'flashvid\\(' do not match",
    "flashvid(alpha='x)": "quotation marks of .* do not match",
    "flashvid fastvid": "cannot be read",
    "flashvid\nfastvid": "cannot be read",
    "flashvid\x00": "cannot be read",
    "flashvid(0.5)": "setting without a name.*here '0.5'",
    "flashvid(*x)": "setting without a name.*here '\\*x'",
    "flashvid(**{'alpha': 0.5})": "settings without names",
    "flashvid(alpha=0.5, alpha=1)": "alpha is given twice",
    "flashvid(alpha=0.5)(beta=1)": "calls what is no name, here 'flashvid\\(alpha=0.5\\)'",
    "os.system(command='ls')": "calls what is no name, here 'os.system'",
    "flashvid(alpha=__import__('os').system('ls'))": "calls what is no name",
    "flashvid(alpha=__import__('os'))": "setting without a name",
    "flashvid(alpha=os.environ)": "no literal.*here 'os.environ'",
    "flashvid(alpha=[x for x in (1,)])": "no literal.*here '\\[x for x in \\(1,\\)\\]'",
    "flashvid(alpha=lambda: 0)": "no literal.*here 'lambda: 0'",
    "flashvid(alpha=f'{1}')": "no literal",
    "flashvid(alpha=2 ** 9)": "no literal.*here '2 \\*\\* 9'",
    "flashvid(alpha=1 if x else 2)": "no literal",
    "flashvid(alpha=(yield))": "no literal",
    "flashvid(alpha=await x)": "no literal",
    "flashvid(alpha=-x)": "no literal",
    "flashvid(alpha=[fastvid])": "no literal",
    "flashvid(alpha=x[0])": "no literal",
    "flashvid(alpha:=0.5)": "setting without a name",
    "flashvid * fastvid": "neither a name nor name\\(setting=value\\), here 'flashvid \\* fastvid'",
    "flashvid and fastvid": "neither a name nor",
    "flashvid[0]": "neither a name nor",
    "'flashvid'": "neither a name nor",
    "[flashvid]": "neither a name nor",
    "flashvid; fastvid": "cannot be read",
    "import os": "cannot be read",
    "(" * 300 + "a" + ")" * 300: "cannot be read|nests too deeply",
    "flashvid(alpha=" + "[" * 400 + "]" * 400 + ")": "cannot be read|nests too deeply",
    "flashvid(alpha=" + "-" * 900 + "1)": "no literal|nests too deeply|cannot be read",
    "a" * 1001: "at most 1000 characters",
}


@pytest.mark.parametrize(("text", "message"), HOSTILE.items(), ids=range(len(HOSTILE)))
def test_all_else_is_refused_in_a_sentence_with_the_part(text, message):
    with pytest.raises(JvidpruneError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_what_cannot_be_chained_is_one_name():
    assert parse_call("Sinkhorn(epsilon=0.5)").settings == {"epsilon": 0.5}
    with pytest.raises(JvidpruneError, match="one name with settings is wanted, got the chain"):
        registry.from_text("aot(intra_transport=Transport(solver=Sinkhorn + Dustbin))")


def test_what_no_text_can_say_is_not_written():
    with pytest.raises(JvidpruneError, match="cost of Transport is a function"):
        expression(registry.get("aot", intra_transport=Transport(cost=lambda x, y: x @ y.T)))


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab:(),+='\"[]{}.-*1 \\/\n", max_size=30))
def test_any_text_is_read_or_refused(text):
    for way in (parse, split_list):
        try:
            way(text)
        except JvidpruneError as error:
            if "\n" in str(error):
                raise AssertionError(f"more than one line about {text!r}") from error
