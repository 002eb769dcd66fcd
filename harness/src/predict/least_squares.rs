//! Least squares with unknowns that cannot be negative: Lawson and Hanson, "Solving Least Squares Problems"
//! (1974), chapter 23. For a few dozen unknowns.

/// Added to a squared column length of 1.
const RIDGE: f64 = 1e-14;

/// One equation: factors of the unknowns, and what they should add up to.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub factors: Vec<f64>,
    pub target: f64,
}

/// Relative to a column's length: below it, what is left of the column is rounding.
const ROUNDING: f64 = 1e-10;

/// The unknowns, none of them negative, for which the sum of the squared errors is smallest.
pub fn solve(rows: &[Row], unknowns: usize) -> Vec<f64> {
    let scales: Vec<f64> =
        (0..unknowns).map(|column| column_length(rows, column).max(f64::MIN_POSITIVE)).collect();
    let (gram, targets) = normal_equations(rows, &scales);
    let mut solution = vec![0.0; unknowns];
    let mut free = vec![false; unknowns];
    // Each round frees one unknown; a round is undone at most as often as there are unknowns.
    for _ in 0..3 * unknowns + 3 {
        let slope = |column: usize| targets[column] - dot(&gram[column], &solution);
        let gain = (0..unknowns).filter(|&column| !free[column]).map(|column| (slope(column), column));
        let Some((steepest, column)) = gain.max_by(|a, b| a.0.total_cmp(&b.0)) else { break };
        if steepest <= ROUNDING * targets[column].abs().max(1e-300) {
            break;
        }
        free[column] = true;
        settle(&gram, &targets, &mut free, &mut solution);
    }
    solution.iter().zip(scales).map(|(value, scale)| value / scale).collect()
}

/// Moves to the best point of the free unknowns, and fixes those at 0 that would become negative on the way.
fn settle(gram: &[Vec<f64>], targets: &[f64], free: &mut [bool], solution: &mut [f64]) {
    loop {
        let aim = solve_free(gram, targets, free);
        let blocked = |column: &usize| free[*column] && aim[*column] <= 0.0;
        let step = (0..aim.len())
            .filter(blocked)
            .map(|column| solution[column] / (solution[column] - aim[column]).max(f64::MIN_POSITIVE))
            .fold(1.0, f64::min);
        let any_blocked = (0..aim.len()).any(|column| blocked(&column));
        for column in 0..aim.len() {
            solution[column] += step * (aim[column] - solution[column]);
            if free[column]
                && aim[column] <= 0.0
                && solution[column] <= ROUNDING * aim[column].abs().max(1e-300)
            {
                solution[column] = 0.0;
                free[column] = false;
            }
        }
        if !any_blocked {
            return;
        }
    }
}

/// Solves the normal equations of the free unknowns; the others are 0.
fn solve_free(gram: &[Vec<f64>], targets: &[f64], free: &[bool]) -> Vec<f64> {
    let columns: Vec<usize> = (0..free.len()).filter(|&column| free[column]).collect();
    let equation =
        |&row: &usize| columns.iter().map(|&column| gram[row][column]).chain([targets[row]]).collect();
    let values = eliminate(columns.iter().map(equation).collect());
    let mut solution = vec![0.0; free.len()];
    columns.iter().zip(values).for_each(|(&column, value)| solution[column] = value);
    solution
}

/// Gauss's elimination with pivots; each equation ends with its right side. What nothing determines becomes
/// 0.
fn eliminate(mut system: Vec<Vec<f64>>) -> Vec<f64> {
    const PIVOT_MIN: f64 = 1e-20;
    let size = system.len();
    for pivot in 0..size {
        let largest =
            (pivot..size).max_by(|&a, &b| system[a][pivot].abs().total_cmp(&system[b][pivot].abs()));
        system.swap(pivot, largest.unwrap_or(pivot));
        let head = system[pivot].clone();
        if head[pivot].abs() < PIVOT_MIN {
            continue;
        }
        for row in system.iter_mut().skip(pivot + 1) {
            let factor = row[pivot] / head[pivot];
            row.iter_mut().zip(&head).for_each(|(value, head)| *value -= factor * head);
        }
    }
    let mut values = vec![0.0; size];
    for pivot in (0..size).rev() {
        let row = &system[pivot];
        let known: f64 = (pivot + 1..size).map(|column| row[column] * values[column]).sum();
        values[pivot] = if row[pivot].abs() < PIVOT_MIN { 0.0 } else { (row[size] - known) / row[pivot] };
    }
    values
}

fn normal_equations(rows: &[Row], scales: &[f64]) -> (Vec<Vec<f64>>, Vec<f64>) {
    let unknowns = scales.len();
    let (mut gram, mut targets) = (vec![vec![0.0; unknowns]; unknowns], vec![0.0; unknowns]);
    // So that columns which imitate one another have a solution, too; far below what the measurements tell.
    (0..unknowns).for_each(|column| gram[column][column] = RIDGE);
    for row in rows {
        let scaled: Vec<f64> = row.factors.iter().zip(scales).map(|(factor, scale)| factor / scale).collect();
        for (i, &factor) in scaled.iter().enumerate().filter(|(_, factor)| **factor != 0.0) {
            targets[i] += factor * row.target;
            gram[i].iter_mut().zip(&scaled).for_each(|(entry, other)| *entry += factor * other);
        }
    }
    (gram, targets)
}

fn column_length(rows: &[Row], column: usize) -> f64 {
    rows.iter().map(|row| row.factors[column].powi(2)).sum::<f64>().sqrt()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// For each unknown: the part of its column that no combination of the others can imitate, from 0 (not
/// determined at all) to 1; the root of the inverse of its variance inflation factor. Errors of the targets
/// are amplified by its inverse.
pub fn independence(rows: &[Row], unknowns: usize) -> Vec<f64> {
    let scales: Vec<f64> =
        (0..unknowns).map(|column| column_length(rows, column).max(f64::MIN_POSITIVE)).collect();
    let (gram, _) = normal_equations(rows, &scales);
    let own = |column: usize| {
        let unit = |row: usize| if row == column { 1.0 } else { 0.0 };
        let equation =
            |(row, factors): (usize, &Vec<f64>)| factors.iter().copied().chain([unit(row)]).collect();
        let inflation = eliminate(gram.iter().enumerate().map(equation).collect())[column];
        if inflation > 0.0 { inflation.sqrt().recip() } else { 0.0 }
    };
    (0..unknowns).map(own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn squared_error(rows: &[Row], solution: &[f64]) -> f64 {
        rows.iter().map(|row| (dot(&row.factors, solution) - row.target).powi(2)).sum()
    }

    fn rows() -> impl Strategy<Value = Vec<Row>> {
        let row = (prop::collection::vec(-2.0f64..5.0, 4), -5.0f64..10.0)
            .prop_map(|(factors, target)| Row { factors, target });
        prop::collection::vec(row, 5..12)
    }

    proptest! {
        #[test]
        fn no_neighbour_is_better(rows in rows(), directions in prop::collection::vec(prop::collection::vec(-1.0f64..1.0, 4), 20)) {
            let best = solve(&rows, 4);
            prop_assert!(best.iter().all(|value| *value >= 0.0), "{:?}", best);
            let least = squared_error(&rows, &best);
            for direction in directions {
                for size in [1e-4, 1e-2, 1.0] {
                    let near: Vec<f64> = best.iter().zip(&direction).map(|(b, d)| (b + d * size).max(0.0)).collect();
                    prop_assert!(squared_error(&rows, &near) >= least - 1e-9 * (1.0 + least));
                }
            }
        }

        #[test]
        fn an_exact_solution_is_found(rows in rows(), known in prop::collection::vec(0.0f64..3.0, 4)) {
            prop_assume!(independence(&rows, 4).iter().all(|own| *own > 0.05));
            let exact: Vec<Row> =
                rows.iter().map(|row| Row { target: dot(&row.factors, &known), ..row.clone() }).collect();
            for (found, known) in solve(&exact, 4).iter().zip(&known) {
                prop_assert!((found - known).abs() < 1e-6, "{} {}", found, known);
            }
        }
    }

    #[test]
    fn columns_that_others_imitate_are_not_determined() {
        let row = |factors: [f64; 3]| Row { factors: factors.to_vec(), target: 1.0 };
        let rows = [row([1.0, 2.0, 0.0]), row([2.0, 4.0, 0.0]), row([3.0, 6.0, 1.0])];
        let own = independence(&rows, 3);
        assert!(own[0].min(own[1]) < 1e-6 && own[2] > 0.3, "{own:?}");
        assert!(independence(&[row([0.0, 1.0, 1.0])], 3)[0] < 1e-6);
    }
}
