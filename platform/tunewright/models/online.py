"""Whether a template writes a conversation as it goes, judged from its syntax.

Such a template has one loop over the messages, at its outermost level. Nothing it writes after the
loop depends on them. Then what it writes for messages[:k] is what it writes for the whole
conversation before it fetches message k, followed by the same words every time - provided that the
loop did not look ahead, which the caller sees when it renders. So one render finds the turns of a
conversation, however many there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from jinja2 import nodes

PROMPT_FLAG = "add_generation_prompt"
_HARMLESS_FILTERS = frozenset({"length", "count"})
_HARMLESS_TESTS = frozenset({"defined", "undefined", "none"})
N = TypeVar("N", bound=nodes.Node)
_FOREIGN = (nodes.Block, nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)


def why_not_online(tree: nodes.Template) -> str:
    """Why one render cannot prove where turns begin and end; empty if it can."""
    if any(True for _ in tree.find_all(_FOREIGN)):
        return "it has blocks or uses other templates"
    holders = _holders(tree)
    reason = next(_misuses(tree, holders), "")
    if reason:
        return reason
    path = _path_to_loop(tree.body, holders)
    if path is None:
        return "it has no single loop over the messages at its outermost level"
    loop = path[-1][0]
    assert isinstance(loop, nodes.For)
    if loop.recursive or loop.else_ or loop.test:
        return "its loop over the messages is recursive, filtered, or has an else branch"
    tail = [node for _, after in path for node in after]
    return _tail_problem(tree, tail, holders)


def _holders(tree: nodes.Template) -> set[str]:
    """`messages`, and the names that stand for it or its end, such as `loop_messages`."""
    holders = {"messages"}
    while True:
        more = {
            node.target.name
            for node in tree.find_all(nodes.Assign)
            if isinstance(node.target, nodes.Name) and _is_list(node.node, holders)
        } - holders
        if not more:
            return holders
        holders |= more


def _is_list(node: nodes.Node | None, holders: set[str]) -> bool:
    """Whether an expression is the messages themselves, or a slice of them."""
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Slice) and _is_list(node.node, holders)
    if isinstance(node, nodes.CondExpr):
        return _is_list(node.expr1, holders) and _is_list(node.expr2, holders)
    return isinstance(node, nodes.Name) and node.name in holders


def _misuses(node: nodes.Node, holders: set[str], as_truth: bool = False) -> Iterator[str]:
    """Uses of the messages, or of `loop`, that a render would not notice."""
    for child in node.iter_child_nodes():
        if _is_list(child, holders) and not _is_watched(node, child, holders, as_truth):
            yield f"it uses the messages other than in its loop and by index (line {child.lineno})"
        if isinstance(child, nodes.Name) and child.name == "loop" and not isinstance(node, nodes.Getattr):
            yield f"it uses `loop` other than by its attributes (line {child.lineno})"
        truth = isinstance(node, nodes.If | nodes.CondExpr) and child is node.test
        logic = isinstance(node, nodes.And | nodes.Or | nodes.Not) and as_truth
        yield from _misuses(child, holders, truth or logic)


def _is_watched(parent: nodes.Node, child: nodes.Node, holders: set[str], as_truth: bool) -> bool:
    """Whether a `Walk` in the place of the messages sees what is done here."""
    match parent:
        case nodes.If():
            return parent.test is child
        case nodes.CondExpr():  # a choice of two lists is a list, to be judged by its own parent
            return parent.test is child or _is_list(parent, holders)
        case nodes.And() | nodes.Or() | nodes.Not():
            return as_truth
        case nodes.For():
            return parent.iter is child
        case nodes.Getitem():
            return parent.node is child
        case nodes.Assign():
            return isinstance(parent.target, nodes.Name)
        case nodes.Filter():
            return parent.name in _HARMLESS_FILTERS
        case nodes.Test():
            return parent.name in _HARMLESS_TESTS
    return isinstance(child, nodes.Name) and child.ctx != "load"


Path = list[tuple[nodes.Node, list[nodes.Node]]]


def _path_to_loop(body: list[nodes.Node], holders: set[str]) -> Path | None:
    """The only loop over the messages and what encloses it, each with the nodes that follow it.

    None if there is no loop, several, or one inside anything but `if`.
    """
    loops = [n for top in body for n in _all(top, nodes.For) if _is_list(n.iter, holders)]
    if len(loops) != 1:
        return None
    path: Path = []
    nodes_here = body
    while True:
        at = next((i for i, n in enumerate(nodes_here) if loops[0] in _all(n, nodes.For)), None)
        if at is None:
            return None
        here = nodes_here[at]
        path.append((here, nodes_here[at + 1 :]))
        if here is loops[0]:
            return path
        if not isinstance(here, nodes.If):
            return None
        branches: list[list[nodes.Node]] = [here.body, here.else_, list(here.elif_)]
        nodes_here = next(b for b in branches if any(loops[0] in _all(n, nodes.For) for n in b))


def _tail_problem(tree: nodes.Template, tail: list[nodes.Node], holders: set[str]) -> str:
    """Why the words after the loop may differ from one conversation to the next; empty if they cannot."""
    changing = {"tools", "documents", "loop", *holders, *_assigned(tree)} - {PROMPT_FLAG}
    used = {name.name for node in tail for name in _all(node, nodes.Name)}
    if used & changing:
        return f"what follows its loop depends on {', '.join(sorted(used & changing))}"
    everywhere = sum(name.name == PROMPT_FLAG for name in tree.find_all(nodes.Name))
    here = sum(name.name == PROMPT_FLAG for node in tail for name in _all(node, nodes.Name))
    defaults = sum(map(_names_in_default, tree.find_all(nodes.If)))
    if everywhere != here + defaults:
        return f"it looks at {PROMPT_FLAG} before its loop has ended"
    return ""


def _assigned(tree: nodes.Template) -> set[str]:
    """Names that the template gives a value or a macro."""
    names = {n.name for n in tree.find_all(nodes.Name) if n.ctx != "load"}
    return names | {macro.name for macro in tree.find_all(nodes.Macro)}


def _names_in_default(node: nodes.If) -> int:
    """How often `{% if not add_generation_prompt is defined %}{% set ... %}{% endif %}` names it.

    The flag is always defined here, so that such an `if` does nothing.
    """
    test = node.test
    undefined = isinstance(test, nodes.Test) and test.name == "undefined" and test.node
    if isinstance(test, nodes.Not) and isinstance(test.node, nodes.Test) and test.node.name == "defined":
        undefined = test.node.node
    if not (isinstance(undefined, nodes.Name) and undefined.name == PROMPT_FLAG) or node.else_ or node.elif_:
        return 0
    return sum(name.name == PROMPT_FLAG for name in node.find_all(nodes.Name))


def _all(node: nodes.Node, kind: type[N]) -> list[N]:
    """Nodes of a kind in a tree, its root included."""
    return ([node] if isinstance(node, kind) else []) + list(node.find_all(kind))
