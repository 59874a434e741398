"""Every request passes here: who is calling, and may they?"""
