"""The closed-form systolic machine model: a whole network on a whole space of designs in one array expression.

No lane is stepped here: a layer on a design costs a formula. The formulas are those of SimDIT (inference and training,
array and vector unit) and of SCALE-Sim (three dataflows), with their faults in the compatibility modes and without
them by default. Everything is exact in 64 bits, which JAX is asked for inside this package only.
"""
