"""Answers that readers might give: for each exercise `RIGHT` ones that must pass and `WRONG` ones that must fail.

They were written from what the chapters ask, not from the inputs of the checks. Each chapter has a module here, and in
it `RIGHT` and `WRONG` map the exercise to its answers: what is particular about each → the answer.
"""
