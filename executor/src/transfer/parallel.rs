//! The same work on several things at the same time.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Does `work` on all of `items`, `jobs` of them at the same time, and gives the results in their order. After an error
/// nothing new is begun; of several, the one of the first item is given.
pub(super) fn map<T: Sync, R: Send, E: Send>(
    jobs: usize,
    items: &[T],
    work: impl Fn(&T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let jobs = jobs.clamp(1, items.len().max(1));
    if jobs == 1 {
        return items.iter().map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<Result<R, E>>>> = Mutex::new(items.iter().map(|_| None).collect());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(number) else { return };
                    let result = work(item);
                    if result.is_err() {
                        next.store(items.len(), Ordering::Relaxed);
                    }
                    results.lock().unwrap_or_else(PoisonError::into_inner)[number] = Some(result);
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    // Without an error there is one for each; with one, what was not begun comes after it or is not looked at.
    results.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order_and_an_error_ends_it() {
        let items: Vec<usize> = (0..100).collect();
        let doubled = map(4, &items, |number| Ok::<_, ()>(number * 2)).unwrap();
        assert_eq!(doubled, items.iter().map(|number| number * 2).collect::<Vec<_>>());
        let begun = AtomicUsize::new(0);
        let error = map(2, &items, |number| {
            begun.fetch_add(1, Ordering::Relaxed);
            if *number == 3 { Err(*number) } else { Ok(()) }
        });
        assert_eq!(error, Err(3));
        assert_eq!(map(4, &[] as &[u8], |_| Ok::<_, ()>(())), Ok(vec![]));
    }
}
