"""What an answer must be: from a regex, a choice or a JSON schema to an automaton over tokens.

Knows no request and no canvas. The automaton's search over a canvas is decoding's.
"""
