"""Answers that readers might give: for each exercise `RIGHT` ones that must pass and `WRONG` ones that must fail.

All but a few were written from what the chapters ask, before the inputs of the checks were read. Each chapter has a
module here, and in it `RIGHT` and `WRONG` map the exercise to its answers: what is particular about each → the answer.
"""
