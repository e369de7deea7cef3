"""placeholder"""
def main(flags): raise ValueError('x')
