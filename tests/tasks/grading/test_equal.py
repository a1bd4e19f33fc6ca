"""What counts as the same answer: examples of every kind, as `reference | answer`."""

import operator
from fractions import Fraction

import pytest
import sympy
from hypothesis import assume, given
from hypothesis import strategies as st

from parallel_r1.tasks.grading.equal import compare
from parallel_r1.tasks.grading.grader import Grader

RIGHT = r"""
3i | 3\cdot i
3i | 3\mathrm{i}
3+i | 3+1i
2-3i | -3i + 2
2-3i | 2 - 3\,\mathrm{i}
i\sqrt{3} | \sqrt{3}i
i\sqrt{3} | \sqrt{3} \, i
\frac{1+i}{2} | 0.5+0.5i
9500 | x = 9,500
9500\pi | 9,500\pi
12345 | 12 345
1234567 | 1,234,567
1234567 | 1 234 567
8\pi | 8\pi\text{ cm}^2
8 | 8cm
2.5 | 2 1/2 hours
8\sqrt3 | 8\sqrt3 units
8\sqrt{3} | 8\sqrt{3}\text{ square units}
12 | 12 square meters
12 | 12 m^2
12 | 12 \text{ m}^2
12 | 12\ \mathrm{m^2}
12 | 12 sq ft
5 hours | 5
5 hours | 5 hours
5\text{ minutes} | 300 seconds
60 | 60 mph
60 | 60 km/h
60 | 60\text{ km/h}
60 | 60 kilometers per hour
\begin{pmatrix}2\\4\end{pmatrix} | 2\begin{pmatrix}1\\2\end{pmatrix}
1000000 | 1e6
0.000001 | 1e-6
0.00005 | 5\times10^{-5}
1500 | 1.5 \times 10^3
Friday | The answer is Friday.
B | Option B
\text{(C)} | C.
\text{(C)} | **(C)**
\text{(C)} | The correct answer is (C).
\text{(C)} | C) 15
\text{(C)} | (C) 15 cm
C | (c)
C | Choice C
C | The answer is option C
7:30\text{ p.m.} | 7:30 PM
7:30\text{ p.m.} | 7:30 P.M.
7:30 | 07:30
19:30 | 7:30 PM
(a,b) \cup (c,d) | (a,b) U (c,d)
(-1,2)\cup(3,5) | (-1,2) \text{ or } (3,5)
(-1,2)\cup(3,5) | -1<x<2 or 3<x<5
(-1,2)\cup(3,5) | (3,5) ∪ (-1,2)
\begin{pmatrix}1\\2\end{pmatrix} | \begin{pmatrix}1\\[6pt]2\end{pmatrix}
72 | \mathbf{72}
72 | `72`
72 | \underline{72}
\frac13 | 0.\overline{3}
\frac13 | 0.333...
\frac16 | 0.1\overline{6}
0.\overline{27} | \frac{3}{11}
\frac34 | ¾
1.75 | 1¾
1.75 | 1 ¾ cups
[1,4] | 1 \le x \le 4
[1,4] | \{x \mid 1 \leq x \leq 4\}
[1,4] | x \in [1,4]
[1,\infty) | x \ge 1
(-\infty,1) | x<1
(-\infty,1) | 1 > x
x \ge 1 | [1,\infty)
\sqrt{1/n} | \frac{1}{\sqrt n}
2x | 2x for all x
72 | seventy-two
100 | one hundred
3 | three
four | 4
1:2:3 | 1:2:3
1:2 | 1/2
3:4:5 | 6:8:10
2:3 | 2 to 3
2:3 | 2 : 3
50\% | 50 percent
50\% | 0.5
50\% | 1/2
12.5\% | 12.5
25 | 25%
\$12.50 | 12.50
\$12.50 | $12.5
\$12.50 | 12.50 dollars
\$1,250 | 1250
1250 | $1,250.00
75\text{ cents} | 0.75
75\text{ cents} | 75
30^\circ | 30
30^\circ | 30 degrees
30 | 30°
\frac{\pi}{6} | pi/6
\frac{\pi}{6} | π/6
1011_2 | 1011_{2}
1011_2 | 1011
1011_2 | (1011)_2
1011_2 | 1011_{(2)}
1011_2 | 1011 (base 2)
1011_2 | 1011_{\text{base } 2}
1011_2 | 1011 in base two
\{1,2\} | \{2,1\}
\{1,2\} | 1, 2
\{1,2\} | {1,2}
\{1,2\} | 1 and 2
(1,2) | x = 1, y = 2
(1,2) | (x,y) = (1,2)
(1,2) | \left(1, 2\right)
(1,2) | (1.0, 2.0)
(1,2,3) | \langle 1,2,3\rangle
(1,2,3) | \begin{pmatrix}1\\2\\3\end{pmatrix}
\begin{pmatrix}1\\2\\3\end{pmatrix} | (1,2,3)
\begin{pmatrix}1&2\\3&4\end{pmatrix} | [[1, 2], [3, 4]]
y=2x+3 | 2x+3
y=2x+3 | y = 3 + 2x
y=2x+3 | 2x - y + 3 = 0
x=5 | 5
5 | x=5
x^2+y^2=1 | y^2 + x^2 - 1 = 0
\sqrt{2} | 1.41421356
\sqrt{2} | 2^{1/2}
\sqrt{2} | sqrt(2)
\sqrt{2} | √2
\frac{\sqrt2}{2} | \sqrt{2}/2
\frac{\sqrt2}{2} | \frac{1}{\sqrt{2}}
\frac{\sqrt2}{2} | sqrt(2)/2
10! | 3628800
\binom{10}{3} | 120
2^{10} | 1024
\log_2 8 | 3
\ln 2 | \log_e 2
e^2 | e^{2}
\pi | 3.14159265
-\frac12 | \frac{-1}{2}
-\frac12 | -0.5
-\frac12 | −½
\frac{3}{4} | \dfrac34
\frac{3}{4} | 3/4
\frac{3}{4} | 0.75
x^2+2x+1 | (x+1)^2
x^2-1 | (x-1)(x+1)
3x+2 | 2+3x
\frac{x+1}{2} | \frac{x}{2}+\frac{1}{2}
\frac{x+1}{2} | (x+1)/2
2^{n-1} | \frac{2^n}{2}
n(n+1)/2 | \frac{n^2+n}{2}
\text{Yes} | yes
\text{Yes} | Yes.
Alice | \text{Alice}
\text{Wednesday} | Wednesday
\text{even} | It is even.
\text{increasing} | The function is increasing
no solution | \emptyset
\emptyset | \varnothing
(-\infty,\infty) | \mathbb{R}
(-\infty,\infty) | all real numbers
\pm 3 | 3, -3
\pm 3 | x = 3 or x = -3
1,2,3 | 3, 2, 1
1,2,3 | x = 1, 2, 3
1,2,3 | x \in \{1,2,3\}
1,2 | x = 1 \text{ or } x = 2
1,2 | 1 \text{ or } 2
72 | 72 km
72 | $72$ km
72 | 72 apples
72 | 72 points
72 | There are 72 apples.
72 | The answer is $72$.
72 | \(72\)
72 | \[72\]
72 | $$72$$
72 | **72**
72 | ≈ 72
72 | x = 72
72 | $x = 72$.
72 | 72.0
72 | 72.
72 | 72,
72 | +72
72 | \text{72}
72 | \boxed{72}
72 | = 72
72 | 72 \text{ ways}
72 | \textbf{72}
\frac{1}{20!} | \frac{1}{20!}
2^{-60} | \frac{1}{2^{60}}
0.0000014 | 1.4\times 10^{-6}
1.5 | 1\frac12
1.5 | 1 1/2
1.5 | 3/2
7\frac12 | 7.5
2\frac{3}{4}\text{ cups} | 2.75 cups
|x| | \sqrt{x^2}
\sin^2 x | 1-\cos^2 x
\tan x | \frac{\sin x}{\cos x}
\sin 2x | 2\sin x\cos x
f(x)=x^2 | x^2
f(x)=x^2 | f(x) = x^2
x=\frac12, y=3 | (\frac12, 3)
\sqrt[3]{2} | 2^{1/3}
\frac{1}{2},\frac{1}{3} | 1/2 and 1/3
3.14 | 3.14
a=1,b=2 | a = 1, b = 2
15^\circ,75^\circ | 15, 75
100,000 | 100000
1,000 | 1000
\text{A and B} | A and B
(2,\infty) | x > 2
10\text{ a.m.} | 10:00 AM
3\text{ to }5 | 3:5
\$2.50 | 250 cents
6\text{ ft} | 72 inches
0 | 0.0
-1 | -1.0
i | \mathrm{i}
-i | -1i
e^{i\pi/3} | \cos\frac{\pi}{3}+i\sin\frac{\pi}{3}
x>2 | x > 2
4.5 \text{ million} | 4500000
2 \text{ dozen} | 24
2\sqrt{2}+1 | 1 + 2 \sqrt 2
\frac{a}{b} | a/b
xy | x y
xy | x \cdot y
2xy | 2*x*y
k\pi | \pi k
3^{\frac12} | \sqrt3
\left(\frac12,\frac13\right) | (1/2, 1/3)
12\text{ cm} | 12 centimeters
\text{12 cm} | 12
5 | 5 \text{ units}
5 | five
12 | 12 people
1\text{ hour} | 60 minutes
\frac{5}{2}\text{ hours} | 2.5 hrs
4\% | 4 \%
(0,0) | (0, 0)
(3, \frac{\pi}{2}) | (3, \pi/2)
-\infty | -\infty
\infty | ∞
5 | 500%
72 | 72
72 | 072
1234 | 1,234
10080 | 10,\!080
\frac12 | 0.5
\frac{1}{3} | 0.333333
0.75 | 3/4
2.5 | 2 1/2
\frac{388}{3} | 129\frac{1}{3}
72 | The answer is 72.
8 | 8\text{ cm}
8 \mbox{ cm}^2 | 8 cm
5.5 | $5.50 per pound
75 | 75^\circ
50\% | 50%
50\% | 50
\{1,2\} | \{2, 1\}
1,2 | 2, 1
1,2 | 1 or 2
1 \text{ and } 2 | 1 and 2
x = 2, x = 1 | $x = 1$ or $x = 2$
(3,\infty)\cup(-\infty,2) | (-\infty, 2) \cup (3, \infty)
\left[ 0, 1 \right) | [0, 1)
\left( 1, 2, \frac{6}{2} \right) | (1, 2, 3)
\begin{pmatrix} \frac{1}{3} \\ 2 \end{pmatrix} | \begin{pmatrix} 1/3 \\ 2 \end{pmatrix}
\sqrt{18} | 3\sqrt{2}
\sqrt{\frac{2}{3}} | \frac{\sqrt{6}}{3}
(x+1)^2 | x^2 + 2x + 1
1 | k = 1
x = 7 | 7
2x + 1 = y | y = 2x + 1
2, 1 | 1 \text{ and } 2
5i + 1 | 1 + 5i
1024 | 2^{10}
\text{(B)} | (B)
\text{(B)} | B
\text{Monday} | monday
0.45\pi | \frac{9\pi}{20}
\frac{3}{4} | It is $\frac34$ of it
11\frac{5}{6} | 11 5/6
\frac{71}{6} | 11\ \frac{5}{6}
\frac{5}{2} | 2 + 1/2
2.5 | 2 and 1/2
2.5 | 2½ hours
-\frac{3}{2} | -1 1/2
-\frac{3}{2} | -1\frac12
\begin{pmatrix}1\\2\end{pmatrix} | \left(\begin{array}{c}1\\2\end{array}\right)
\begin{pmatrix}1\\2\end{pmatrix} | \begin{bmatrix} 1 \\ 2 \end{bmatrix}
\begin{pmatrix}1\\2\end{pmatrix} | [1, 2]^T
\begin{pmatrix}1\\2\end{pmatrix} | [1,2]
\begin{pmatrix} 0 & 1 \\ 1 & 0 \end{pmatrix} | \begin{pmatrix} 0 & 1 \\ 1 & 0 \\ \end{pmatrix}
\begin{pmatrix} 1/2 \\ 0 \end{pmatrix} | \frac{1}{2}\begin{pmatrix} 1 \\ 0 \end{pmatrix}
\begin{pmatrix} 1/2 \\ 0 \end{pmatrix} | A = \begin{pmatrix} 0.5 \\ 0 \end{pmatrix}
\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix} | I = \begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}
(-\infty, 3) | x \in (-\infty, 3)
(-\infty, 3) | \{x : x < 3\}
(-\infty, 3) | \{x \in \mathbb{R} : x < 3\}
(-\infty,-1]\cup[1,\infty) | x \le -1 \text{ or } x \ge 1
(-2, 2) | -2 < x and x < 2
(-2, 2) | x > -2 \text{ and } x < 2
(-\infty,0)\cup(0,\infty) | x \ne 0
(-\infty,0)\cup(0,\infty) | \mathbb{R} \setminus \{0\}
x \neq 3 | x \ne 3
[0,\infty) | [0, +\infty)
[0,\infty) | [0, inf)
[0,\infty) | [0, infinity)
x<2 | (-\infty,2)
2<x<5 | (2,5)
2<x<5 | 5 > x > 2
\{-1, 1\} | x = \pm 1
\{-1, 1\} | \pm 1
\{1\} | 1
\{1,2\} | x=1 or x=2
1,2 | \{1, 2\}
1,2 | [1, 2]
1,2 | (1, 2)
1,2 | 1; 2
1,2 | x_1 = 2, x_2 = 1
1,2 | 1, and 2
1,2,3 | 1, 2, and 3
(1,2) | 1, 2
(1,2) | (2-1, 2)
(x,y)=(1,2) | (1,2)
(1,2),(3,4) | (3,4) and (1,2)
(1,2),(3,4) | (x,y) = (1,2), (3,4)
(1,2),(3,4) | \{(1,2),(3,4)\}
5\% | 5 percent
33\frac13\% | 33.33333\%
33\frac13\% | \frac{100}{3}\%
20\% | 20\ \%
20\% | 0.20
20\% | 20 percent increase
20\% | an increase of 20%
20\% | \frac15
1\frac12\% | 1.5%
0.05 | 5%
1011_2 | 1011_{\text{two}}
1011_2 | 1011 in binary
1011_2 | 1011_2.
1011_2 | \text{1011}_2
1011_2 | 0b1011
1011_2 | 1011 (binary)
1011_2 | 1011 \text{ (base 2)}
1011_2 | 1011\text{ base }2
A5_{16} | a5_{16}
3F_{16} | 0x3F
12_5 | 12_{five}
100_3 | (100)_3
45^\circ | 45 deg
45^\circ | \angle B = 45^\circ
45^\circ | m\angle ABC = 45^\circ
45^\circ | 45 ^\circ
45^\circ | \theta=45°
45^\circ | 45^{\circ}.
45^\circ | 45.0°
22.5^\circ | 22^\circ 30'
22.5^\circ | 22°30′
20 | 20°C
20 | 20 degrees Celsius
8 | 8 cm³
8 | 8 cubic centimeters
8 | 8 \text{cm}^3
8 | 8\;\text{cm}
8 | 8\,\mathrm{m/s}
8 | 8\ \text{m s}^{-1}
8 | 8 m/s^2
8 | 8\text{ in}^2
8 | 8 sq cm
8 | 8 kg
8 | 8kg
8 | 8 L
8 | 8 liters
8 | 8 N
8 | 8"
8 | 8 inches
8\pi | 8\pi \text{ units}
8\pi | 8 pi
8\pi | 8 \cdot \pi
8\pi | 8\pi cm^2
8\pi | 8π cm²
8\pi | \pi \cdot 8
8\pi | 25.132741
2\sqrt{3} | 2\sqrt{3} \text{ cm}
2\sqrt{3} | 2\sqrt3 inches
2\sqrt{3} | 2*sqrt(3)
2\sqrt{3} | 2√3 cm
2\sqrt{3} | \sqrt{12}
2\sqrt{3} | 3.4641016
\$32.50 | 32.50
\$32.50 | \$32.5
\$32.50 | USD 32.50
\$32.50 | 32.50 USD
\$32.50 | 32 dollars and 50 cents
\$18 | 18 dollars
\$18 | \textdollar 18
18 | €18
18 | 18 euros
18 | 18€
18 | 18 £
25\text{ cents} | 25 cents
25\text{ cents} | 25¢
25\text{ cents} | $0.25
0.25 | 25 cents
6.02\times10^{23} | 6.02 x 10^{23}
6.02\times10^{23} | 6.02e23
6.02\times10^{23} | 6.02E+23
6.02\times10^{23} | 6.02 × 10²³
6.02\times10^{23} | 6.02*10^23
6.02\times10^{23} | 602000000000000000000000
1.5\times10^{-3} | 0.0015
1.5\times10^{-3} | 1.5e-3
1500000 | 1.5 million
2000 | 2 thousand
3000000000 | 3 billion
x^2+2x+1 | x² + 2x + 1
x^2+2x+1 | x^{2}+2 x+1
x^2+2x+1 | f(x) = x^2+2x+1
x^2+2x+1 | (1+x)^2
x^2+2x+1 | x*x + 2*x + 1
x^2+2x+1 | p(x)=x^2+2x+1
3x^2y | 3yx^2
\frac{x}{x+1} | x/(x+1)
\frac{x}{x+1} | 1 - \frac{1}{x+1}
\frac{1}{x-1} | -\frac{1}{1-x}
\frac{1}{2}bh | 0.5bh
\frac{1}{2}bh | bh/2
a^2-b^2 | (a-b)(a+b)
e^{2x} | \left(e^x\right)^2
e^{2x} | exp(2x)
\ln x | \log x
\sqrt{x}+1 | x^{1/2}+1
\sqrt{x}+1 | 1 + sqrt(x)
2^{n+1} | 2\cdot 2^n
n! | n!
\frac{n(n-1)}{2} | \binom{n}{2}
\binom{n}{2} | \frac{n(n-1)}{2}
\sum_{k=1}^n k | \frac{n(n+1)}{2}
y=-2x+1 | 2x+y=1
y=-2x+1 | y = -2 x + 1
y=\frac{1}{2}x-3 | x - 2y = 6
y=\frac{1}{2}x-3 | y=0.5x-3
x=4 | 4
x=4 | x = 4.0
x^2+y^2=25 | x^2 + y^2 - 25 = 0
(x-1)^2+y^2=4 | x^2-2x+y^2-3=0
\frac{x^2}{4}+\frac{y^2}{9}=1 | 9x^2+4y^2=36
xy=1 | y=\frac{1}{x}
\text{(A)} | A
\text{(A)} | (A)
\text{(A)} | A.
\text{(A)} | Answer: A
\text{(A)} | Option (A)
\text{(A)} | choice A
\text{(A)} | The correct option is A.
\text{(A)} | A: 5
\text{(A)} | \boxed{A}
\text{(A)} | **A**
\text{(A)} | \mathrm{A}
\text{(A)} | \textbf{(A)}\ 5
A | (A)
A | \text{A}
A, B | B and A
A, B | AB
\text{B and C} | B, C
\text{Tuesday} | tuesday
\text{Tuesday} | Tuesday.
\text{Tuesday} | The day is Tuesday
\text{Tuesday} | on a Tuesday
\text{Yes} | \text{yes}
\text{Yes} | Yes, it is.
\text{No} | no
\text{odd} | f is odd
\text{odd} | an odd function
\text{True} | true
Navin | \text{Navin}
\text{red} | Red
\text{ellipse} | an ellipse
\text{ellipse} | It is an ellipse.
3:2 | 3 : 2
3:2 | 3 to 2
3:2 | \frac{3}{2}
3:2 | 6:4
3:2 | 3/2
1:\sqrt{3}:2 | 1:\sqrt3:2
1:\sqrt{2} | 1 : \sqrt{2}
4:30 | 4:30
4:30 | 04:30
4:30\text{ p.m.} | 4:30 pm
4:30\text{ p.m.} | 4:30pm
4:30\text{ p.m.} | 16:30
10\text{ a.m.} | 10 am
10\text{ a.m.} | 10:00 a.m.
\frac16 | 0.1666...
\frac16 | 0.1\bar{6}
\frac16 | 0.166666\ldots
\frac16 | 0.1(6)
\frac16 | .16\overline{6}
0.\overline{6} | \frac23
0.\overline{6} | 0.666666667
0.\overline{142857} | \frac17
\sqrt[3]{4} | 4^{\frac{1}{3}}
\sqrt[3]{4} | \sqrt[3]{4}
\sqrt[3]{4} | 2^{2/3}
\frac{\sqrt{3}}{3} | 1/\sqrt{3}
\frac{\sqrt{3}}{3} | \sqrt{\frac13}
\log_2 3 | \frac{\log 3}{\log 2}
\log_2 3 | log_2(3)
\log_2 3 | \log_{2}{3}
\ln 2 | ln(2)
120 | 5 \cdot 4 \cdot 3 \cdot 2 \cdot 1
\frac{10!}{3!7!} | 120
120 | {10 \choose 3}
120 | C(10, 3)
120 | \dbinom{10}{3}
1+2i | 1 + 2i
1+2i | 2i + 1
1+2i | 1 + 2\mathrm{i}
1+2i | 1 + 2 i
\frac{1}{2}-\frac{\sqrt3}{2}i | \frac{1-i\sqrt{3}}{2}
\frac{1}{2}-\frac{\sqrt3}{2}i | \frac{1}{2} - \frac{i\sqrt{3}}{2}
3e^{i\pi/2} | 3i
5\text{ cis }90^\circ | 5i
5\text{ cis }90^\circ | 5(\cos 90^\circ + i \sin 90^\circ)
\frac34 | 3⁄4
\frac34 | 75\%
\frac34 | three quarters
\frac34 | three-fourths
\frac34 | \frac{3}{4}\text{ of the class}
1000 | 1,000
1000 | 1 000
1000 | 1\,000
1000 | 1{,}000
1000 | 1'000
1000 | 10^3
1000 | one thousand
12 | twelve
21 | twenty-one
21 | Twenty one
0 | zero
-5 | negative five
-5 | minus 5
-5 | −5
7 | \fbox{7}
7 | ✔ 7
7 | 7 ✅
7 | "7"
7 | '7'
7 | <b>7</b>
7 | \(7\).
7 | $\boldsymbol{7}$
7 | \color{red}{7}
7 | \textcolor{blue}{7}
7 | {\large 7}
7 | \displaystyle 7
7 | 7\quad
7 | n = 7
7 | Answer = 7
7 | a_7 = 7
7 | |x| = 7
7 | f(2) = 7
7 | AB = 7
7 | S = 3 + 4 = 7
7 | 3 + 4 = 7
7 | x \approx 7
7 | exactly 7
7 | only 7
7 | So the answer is 7.
7 | Therefore, x = 7.
7 | He has 7 left.
7 | 7 more
7 | 7 more apples
7 | 7th
7 | the 7th term
7 | N=7
7 | \text{The answer is } 7
7 | It would take 7 days.
7 | \therefore x = 7
7 | \implies 7
7 | 7%
7 | \begin{aligned} x &= 3+4 \\ \end{aligned}
7 | \begin{equation} x = 7 \end{equation}
"""
WRONG = r"""
100000000000000000000 | 100000000000000000000.1
-13899999999999972200001/139 | -100000000000000000000.0
1011_2 | 1011_3
1011_2 | 1011_{10}
1011_2 | 11
1011_2 | 1011 base 3
1:2:3 | 1:3:2
10:30 | 1:3
2:3 | 3:2
2:3 | 3/2
2^{-60} | 2^{-61}
\frac{1}{20!} | \frac{1}{21!}
0.0000014 | 0.0000006
0.0000014 | 0
0 | 0.0000001
\frac{2^{900}+1}{3\cdot2^{901}} | \frac{1}{3\cdot2^{901}}
72 | It is not 72
72 | at least 72
72 | more than 72
72 | \ge 72
72 | > 72
72 | x > 72
72 | not 72
72 | \neq 72
72 | 72 or 73
72 | 71, 72
72 | 72, 73, 74
72 | between 71 and 73
(1,2) | \{1,2\}
\{1,2\} | (1,2)
(1,2) | (2,1)
(1,2) | [1,2]
[1,2) | [1,2]
[1,4] | 1 < x < 4
[1,4] | 1 \le x < 4
(-\infty,1) | x \le 1
(-\infty,1) | x > 1
1.234567 | 1.234568
0.1234567 | 0.1234568
123456.7 | 123456.8
1/3 | 0.333
1/3 | 0.3334
2/3 | 0.66667
\sqrt2 | 1.414
\pi | 3.14
\pi | 22/7
100 | 100.0001
1000000 | 1000001
10^{20} | 10^{20}+1
10^{-20} | 10^{-21}
3i | 3
3i | -3i
3+i | 3-i
50\% | 5
50\% | 0.05
50\% | 500
\$12.50 | 1250
75\text{ cents} | \$75
8\text{ m} | 8 cm
1\text{ hour} | 1 minute
30^\circ | \frac{\pi}{3}
7:30\text{ p.m.} | 7:30 AM
7:30\text{ p.m.} | 8:30 PM
12:00 | 0:12
\text{(B)} | C
\text{(B)} | A or B
\text{(B)} | (A) or (B)
\text{(B)} | not B
\text{(B)} | ABCD
\text{Friday} | Thursday
\text{Friday} | It is not Friday
\text{Friday} | Monday, Tuesday, Wednesday, Thursday or Friday
\text{even} | odd
\text{even} | not even
\text{even} | odd or even
\text{Evelyn} | Eveyln
\text{Yes} | No
\begin{pmatrix}1\\2\end{pmatrix} | \begin{pmatrix}1&2\end{pmatrix}
\begin{pmatrix}2\\4\end{pmatrix} | 2\begin{pmatrix}1\\3\end{pmatrix}
\begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{pmatrix}1&3\\2&4\end{pmatrix}
\begin{pmatrix}1&2\\3&4\end{pmatrix} | 1,2,3,4
x^2+2x+1 | x^2+2x
y=2x+3 | y=2x-3
y=2x+3 | x=2y+3
x+y=3 | x-y=3
x+y=3 | 3
\pm 3 | 3
\pm 3 | -3
3 | \pm 3
1,2 | 1
1 | 1,2
1,2,3 | 1,2
\frac12 | \frac{1}{2}+\frac{1}{1000000000}
2\frac12 | 2
2\frac12 | 1
11 | 1 1
12 | 1,2
\sqrt{2} | \sqrt{3}
\sqrt{2} | -\sqrt{2}
|x| | x
\sqrt{x^2} | x
(x-1)^2 | (x+1)^2
2Rr | 2r^2
n | N
x | y
3:4 | 3:4:5
1/2 | 1/2/3
9^9 | 9^9^9
4210_5 | 4210_6
2A5_{16} | 2A6_{16}
A5_{16} | A5_{15}
0.5 | 0.5%
(0,1) | (0,1]
(0,1)\cup(2,3) | (0,1)
(0,1)\cup(2,3) | (0,3)
(0,1) | (0,1)\cup(2,3)
\emptyset | 0
0 | \emptyset
\infty | -\infty
2 | 2x
2x | 2
2 | 2t
10 | 1010_2
1.5 | 15
15 | 1.5
1,234 | 1.234
1234 | 1,23,4
-3 | 3
3 | -3
7 | 7\sqrt{2}
8\pi | 8
8 | 8\pi
8\pi | 8\pi^2
2^{10} | 2^{11}
5! | 5
\log_2 3 | \log_3 2
\ln 3 | \log_{10} 3
e^2 | 2e
i | 1
i | -1
x=5 | x=-5
x>5 | x<5
x>5 | x=5
x \ge 5 | 5
5 | x \ge 5
72 | 72 is wrong
72 | 72?? or 12
100 | 99.99999
100 | 100.0000001
\frac{1}{1000000007} | \frac{1}{1000000009}
0.00001 | 0.00002
1\times 10^{-8} | 3\times 10^{-8}
\frac{\pi}{10^{10}} | \frac{e}{10^{10}}
\sqrt{2}\cdot 10^{-20} | \sqrt{3}\cdot 10^{-20}
2^{1000} | 2^{1000}+1
\sqrt{2^{1000}} | \sqrt{2^{1000}+1}
\frac{1}{3} | \frac{333333}{1000000}
\{(1,2),(3,4)\} | \{(1,2),(4,3)\}
(1,2),(3,4) | (2,1),(4,3)
1 + \frac{1}{10^{30}} | 1
10^{30}+1 | 10^{30}
\text{no solution} | 0
A, C | A
A, C | A, B
72 | 73
72 | -72
\frac{1}{3} | 0.3333
72 | 71 or 72
72 | open('x', 'w').close() or 72
72 | 12 apples and 72 pears
72 | $71 and $72
72 | 1 2 3 72
3x + 2 | 3x + 2d
72 | 72}
72 | x = 71
\text{odd} | even
(1, 2) | (2, 1)
[0, 1) | (0, 1]
\{1,2\} | \{1, 2, 3\}
\begin{pmatrix} 2 \\ 1 \end{pmatrix} | \begin{pmatrix} 1 \\ 2 \end{pmatrix}
3\sqrt{2} | 2\sqrt{3}
50\% | 5%
\text{(B)} | A
\text{Monday} | Tuesday
(x+1)^2 | x^2 + 2x
7 | not equal to 7
7 | it isn't 7
7 | 7 is not the answer
7 | less than 7
7 | no more than 7
7 | < 7
7 | x < 7
7 | \leq 7
7 | 7+
7 | 7 or more
7 | anything but 7
7 | 7x
7 | 7, 8
7 | 7 8
7 | 7/1/1/2
7 | 7.5
7 | 77
7 | -7
7 | 7i
7 | 7!
7 | 7^7
7 | 7:1
7 | \sqrt{7}
7 | \{7, 8\}
7 | 7^\circ 30'
7 | 6.9999
7 | [7, 8]
7 | 1/7
7 | 7 \text{ or } 9
7 | 5 + 3 = 7 = 8
7 | 7 = 8
7 | 8 = 7
10:30 | 3:9
1:2 | 2:4:6
1:2 | 1:3
1:2:3 | 1:2
1:2 | 12
0:1 | 0:2:3
3:4 | 4:3
2^{-50} | 0
0 | 2^{-50}
10^{-12} | 2\cdot10^{-12}
10^{-12} | -10^{-12}
\frac{1}{10^{12}} | \frac{1}{10^{12}+1}
\frac{3^{500}+1}{3^{500}} | 1
1 | \frac{3^{500}+1}{3^{500}}
\left(\frac{1}{2}\right)^{100} | \left(\frac{1}{2}\right)^{101}
\frac{100!}{102!} | \frac{100!}{101!}
e^{-50} | e^{-51}
e^{-50} | 0
\frac{\sqrt{2}}{10^9} | \frac{\sqrt{3}}{10^9}
0.00000123 | 0.00000124
0.123456 | 0.123457
3.1415926 | 3.1415927
\frac{22}{7} | 3.14
\frac{1}{7} | 0.142858
\frac{1}{7} | 0.14
\frac{2}{3} | 0.6666666666667666
1011_2 | 1011_8
1011_2 | 1011_{\text{three}}
1011_2 | 1101
77_8 | 77_9
77_8 | 63
77_8 | 63_{10}
\{1,2,3\} | (1,2,3)
(1,2,3) | \{1,2,3\}
\{1,2\} | [1,2]
\{(1,2)\} | \{(2,1)\}
(0,1) | \{0,1\}
(0,1) | [0,1]
[0,1] | 0<x<1
[0,1) | 0 \le x \le 1
(-\infty,2) | (-\infty,2]
(-\infty,2) | x>2
(-\infty,2)\cup(3,\infty) | 2<x<3
(-\infty,2)\cup(3,\infty) | (-\infty,3)\cup(2,\infty)
(1,2) | (1,2,3)
(1,2) | (1,3)
(1,2) | 12
12 | (1,2)
\begin{pmatrix}1\\2\end{pmatrix} | (2,1)
\begin{pmatrix}1\\2\end{pmatrix} | 3
\begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{pmatrix}1&2\\3&5\end{pmatrix}
\begin{pmatrix}1&2\\3&4\end{pmatrix} | -2
3\sqrt2 | 2\sqrt3
3\sqrt2 | \sqrt{6}
3\sqrt2 | 4.2426
\frac{\sqrt3}{2} | \frac{\sqrt2}{3}
\pi/2 | \pi/3
\pi | 3
2\pi | 2
x^2+1 | x^2-1
x^2+1 | x+1
x^2+1 | y^2+1
2x+1 | 2x
x+1=2 | x+1=3
y=x^2 | y=x^3
y=2x | x=2y
x+y=1 | x+y=2
\sin x | \cos x
\sin 2x | 2\sin x
\log 8 | \log 9
\binom{10}{3} | \binom{10}{4}
5! | 6!
\text{(A)} | (B)
\text{(A)} | B
\text{(A)} | A and B
\text{(A)} | A, B
\text{(A)} | A or C
\text{(A)} | (A) (B) (C) (D)
\text{(A)} | not (A)
A | BA
\text{A, C} | A, B, C
\text{Monday} | Monday or Tuesday
\text{Monday} | Not Monday
\text{Monday} | the day after Monday
\text{Monday} | Sunday and Monday
\text{odd} | neither even nor odd
\text{odd} | not odd
\text{Yes} | Yes and no
\text{dog} | god
\text{Adam} | Mada
Alice | Bob
7:30\text{ p.m.} | 7:30\text{ a.m.}
7:30\text{ p.m.} | 7:31 PM
7:30\text{ p.m.} | 19:31
7:30 | 7.30
10\text{ a.m.} | 10 p.m.
50\% | 0.005
50\% | 50.5%
50\% | 5000\%
50 | 0.5
0.5 | 50
\$5 | 5 cents
\$5.00 | \$500
5\text{ cm} | 5 m
5\text{ hours} | 5 minutes
45^\circ | 45'
45^\circ | 45 radians
45^\circ | 54^\circ
i | -i
2+3i | 2-3i
2+3i | 3+2i
2+3i | 2+3
2+3i | 5i
0.\overline{3} | 0.3
0.\overline{3} | 0.33
0.\overline{36} | 0.3\overline{6}
2\frac12 | 2\cdot\frac12
2\frac12 | \frac{2}{12}
2\frac12 | 212
\frac{1}{12} | 1\frac{1}{2}
10^6 | 10^7
10^6 | 106
2^{10} | 2^{9}
2^{10} | 210
2^{10} | 20
6\times10^{8} | 6\times10^{9}
1.5e3 | 1.5e4
seven | eight
72 | seventy
\emptyset | \{0\}
\emptyset | (0,1)
\text{no solution} | x=0
\infty | 0
\infty | 1000
(-\infty,\infty) | (0,\infty)
\pm 2 | 2, 3
\pm 2 | 2, 2
1 \pm \sqrt2 | 1+\sqrt2
1 \pm \sqrt2 | 1 \pm \sqrt3
1 \pm \sqrt2 | \pm 1 + \sqrt 2
1,1,2 | 1,2,3
x_1 | x_2
a_1+a_2 | a_1+a_3
2,3 | 23
23 | 2,3
1,000 | 1, 000, 1
1,000 | 1.000
1.000 | 1,000
"""


def pairs(table):
    return [tuple(line.split(" | ")) for line in table.strip().splitlines()]


@pytest.fixture(scope="module")
def grader():
    with_one = Grader(size=1)
    yield with_one
    with_one.close()


@pytest.mark.parametrize(("gold", "answer"), pairs(RIGHT))
def test_the_same_answer_in_another_form_is_right(grader, gold, answer):
    assert grader.right(answer, gold)


@pytest.mark.parametrize(("gold", "answer"), [*pairs(WRONG), ("72", ""), ("", "72"), ("72", "72}")])
def test_another_answer_is_wrong(grader, gold, answer):
    assert not grader.right(answer, gold)


def test_nearly_all_of_this_is_decided_by_our_own_rules():
    asked = [compare(answer, gold) for gold, answer in pairs(RIGHT) + pairs(WRONG)]
    assert sum(isinstance(verdict, tuple) for verdict in asked) <= 0.03 * len(asked)


def spellings(value: Fraction) -> list[str]:
    above, below = abs(value.numerator), value.denominator
    sign = "-" if value < 0 else ""
    texts = [
        rf"${sign}\frac{{{above}}}{{{below}}}$",
        f"{sign}{above}/{below}.",
        rf"\[{sign}\dfrac{{{above}}}{{{below}}}\]",
        rf"{sign}{above // below} \frac{{{above % below}}}{{{below}}}",
    ]
    if below == 1:
        texts += [f"{value}", f"{value}.0", f"{sign}{above:,}", rf"\${value}", f"**{value}**"]
    return texts


values = st.fractions(-(10**20), 10**20, max_denominator=500)


@given(values, values)
def test_plain_numbers_are_compared_exactly(one, two):
    assume(one == two or abs(one - two) > Fraction(abs(two), 10**5))  # neither is the other one, rounded
    for text in spellings(one):
        assert compare(text, f"{one.numerator}/{one.denominator}") is True
        assert compare(text, f"{two.numerator}/{two.denominator}") is (one == two)


@given(st.fractions(-(10**9), 10**9, max_denominator=10**6), st.integers(6, 12))
def test_six_digits_of_a_number_are_enough_and_a_wrong_sixth_is_not(value, digits):
    assume(abs(value) >= 1 and 10**12 % value.denominator)  # no decimal is equal to it
    places = max(1, max(digits, 7) - len(str(int(abs(value)))))
    gold = f"{value.numerator}/{value.denominator}"
    rounded = round(value, places)
    assert compare(decimal(rounded, places), gold) is True
    assert compare(decimal(rounded + Fraction(20, 10 ** min(places, 6)), places), gold) is False


def decimal(value: Fraction, places: int) -> str:
    digits = f"{abs(round(value * 10**places)):0{places + 1}d}"
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


SYMBOLS = sympy.symbols("x y")
expressions = st.recursive(
    st.integers(-9, 9).map(sympy.Integer) | st.sampled_from([*SYMBOLS, sympy.pi, sympy.I, sympy.sqrt(2)]),
    lambda inner: (
        st.builds(operator.add, inner, inner)
        | st.builds(operator.mul, inner, inner)
        | st.builds(lambda a, b: a / b if b != 0 else a, inner, inner)
        | st.builds(lambda a: a**2, inner)
        | st.builds(lambda a: sympy.sqrt(a**2 + 1), inner)
    ),
    max_leaves=6,
)


@given(expressions, expressions)
def test_expressions_are_compared_as_sympy_compares_them(one, two):
    """Forms of the same expression are equal, in a list too; and what we say of another one sympy says too."""
    forms = [sympy.latex(form) for form in (one, sympy.expand(one), sympy.together(one), one + two - two)]
    for form in forms:
        assert compare(form, forms[0]) is not False
        assert compare(f"({form}, 7)", f"({forms[0]}, 7)") is not False
    verdict = compare(sympy.latex(two), forms[0])
    if isinstance(verdict, bool):
        assert verdict == (sympy.simplify(one - two) == 0)
