"""Which layers of a converted model keep attention: selectors over one table of evaluations.

A *teacher* has attention in every layer, a *student* another mixer in some of them, the candidates.
A set of kept candidates names a hybrid: these layers are the teacher's, the other candidates the
student's.
"""
