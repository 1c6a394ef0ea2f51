"""Answers GraphQL documents from plain values: an object is a dict, a field with arguments a function in it.

Strict: a field that an object does not have, or an argument that its function does not take, is an error.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from graphql import (
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionNode,
    SelectionSetNode,
    Undefined,
    parse,
    value_from_ast_untyped,
)

INTERFACES = {
    "ArtifactSequence": {"ArtifactCollection"},
    "ArtifactPortfolio": {"ArtifactCollection"},
}
"""Type -> interfaces that it has, for fragments on one of them."""


class UnknownField(Exception):
    """A client asks for something that the fake does not know."""


class Document:
    def __init__(self, source: str, variables: Mapping[str, Any] | None) -> None:
        document = parse(source)
        self._fragments = {
            node.name.value: node
            for node in document.definitions
            if isinstance(node, FragmentDefinitionNode)
        }
        (self._operation,) = (
            node for node in document.definitions if isinstance(node, OperationDefinitionNode)
        )
        defaults = {
            node.variable.name.value: value_from_ast_untyped(node.default_value)
            for node in self._operation.variable_definitions or ()
            if node.default_value is not None
        }
        self._variables = {**defaults, **(variables or {})}

    @property
    def name(self) -> str:
        if self._operation.name is not None:
            return self._operation.name.value
        (first, *_) = self._operation.selection_set.selections
        return first.name.value if isinstance(first, FieldNode) else ""

    def answer(self, root: Mapping[str, Any]) -> Any:
        return self._project(root, self._operation.selection_set)

    def _project(self, value: Any, selected: SelectionSetNode | None) -> Any:
        if value is None or selected is None:
            return value
        if isinstance(value, list | tuple):
            return [self._project(item, selected) for item in value]
        out: dict[str, Any] = {}
        for node in selected.selections:
            if not self._is_included(node):
                continue
            match node:
                case FieldNode():
                    alias = (node.alias or node.name).value
                    new = self._project(self._field(value, node), node.selection_set)
                    before = out.get(alias)
                    out[alias] = (
                        {**before, **new}
                        if isinstance(before, dict) and isinstance(new, dict)
                        else new
                    )
                case FragmentSpreadNode():
                    fragment = self._fragments[node.name.value]
                    if _is_a(value, fragment.type_condition.name.value):
                        out |= self._project(value, fragment.selection_set)
                case InlineFragmentNode():
                    if node.type_condition is None or _is_a(value, node.type_condition.name.value):
                        out |= self._project(value, node.selection_set)
        return out

    def _field(self, value: Mapping[str, Any], node: FieldNode) -> Any:
        name, kind = node.name.value, value.get("__typename", "?")
        given = {
            argument.name.value: value_from_ast_untyped(argument.value, self._variables)
            for argument in node.arguments or ()
        }
        arguments = {name: value for name, value in given.items() if value is not Undefined}
        if name not in value:
            raise UnknownField(f"{kind}.{name}")
        found = value[name]
        if not callable(found):
            if arguments:
                raise UnknownField(f"{kind}.{name}({', '.join(arguments)}:)")
            return found
        try:
            inspect.signature(found).bind(**arguments)
        except TypeError as error:
            raise UnknownField(f"{kind}.{name}: {error}") from error
        return found(**arguments)

    def _is_included(self, node: SelectionNode) -> bool:
        for directive in node.directives or ():
            condition = directive.arguments[0]
            wanted = directive.name.value == "include"
            if bool(value_from_ast_untyped(condition.value, self._variables)) != wanted:
                return False
        return True


def _is_a(value: Mapping[str, Any], kind: str) -> bool:
    own = value.get("__typename")
    return own is None or own == kind or kind in INTERFACES.get(own, ())
